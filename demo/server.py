"""Start the page on a host and port, with clear errors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comp.errors import CompExportError
from comp.utils.address import check_address

if TYPE_CHECKING:
    from demo.pair import Pair
    from demo.remote.client import Remote
    from serve.artifacts import ArtifactVariant

# Gradio reads these when it is imported: no telemetry, no requests to other hosts.
PRIVATE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def serve_page(
    run: Path,
    host: str,
    port: int,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None = None,
    block: bool = True,
    variant: "ArtifactVariant | None" = None,
) -> Any:
    """Load a run's engines and serve their page.

    Args:
        run: the run directory.
        host: address to listen on.
        port: port to listen on.
        device: device of the engines.
        threads: CPU threads of the engines.
        block: return only when the page is stopped.
        variant: the artifacts of the run to use, and the backend that runs them.

    Returns:
        The running ``gradio.Blocks`` (close it with ``.close()``).

    Raises:
        CompExportError: the run cannot be loaded, or the address cannot be used.
    """

    def load() -> "Pair[Any]":
        from demo.pair import Pair
        from serve.artifacts import DEFAULT_VARIANT

        return Pair.load(run, device, threads, variant or DEFAULT_VARIANT)

    return _serve(load, host, port, block)


def serve_page_of(
    remote: "Remote",
    models: tuple[str, str] | None,
    host: str,
    port: int,
    block: bool = True,
) -> Any:
    """Serve a page whose models run on a server; no engine is loaded here.

    Args:
        remote: the server.
        models: ids of its dense and its compressed model; by default those that belong together.
        host: address to listen on.
        port: port to listen on.
        block: return only when the page is stopped.

    Returns:
        The running ``gradio.Blocks`` (close it with ``.close()``).

    Raises:
        CompExportError: the server does not answer or has no such models, or the address cannot be used.
    """

    def load() -> "Pair[Any]":
        from demo.pair import Pair

        return Pair.of_server(remote, models)

    return _serve(load, host, port, block)


def _serve(load: "Callable[[], Pair[Any]]", host: str, port: int, block: bool) -> Any:
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
    import gradio  # noqa: F401  # first, so that a missing extra is reported before loading

    from demo.page import build_page, launch_options
    from demo.uploads import process_uploads

    check_address(host, port)
    uploads = process_uploads()  # before Gradio makes a part that looks for its folder
    page = build_page(load(), uploads)
    try:
        page.queue(max_size=64).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            **launch_options(uploads),
        )
    except OSError as error:
        raise CompExportError(f"cannot serve on {host}:{port}: {error}; use --port") from error
    if block:
        page.block_thread()
    return page
