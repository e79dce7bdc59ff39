"""Options that all commands share, and the argument that names a run."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from comp.commands.sections import GroupedOption
from comp.utils.device import DEVICES, Device
from comp.utils.option_fields import HARDWARE

LATEST_RUN = Path("runs/latest")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommonOptions:
    """Values of the shared options.

    ``comp.cli.main`` handles ``debug``; commands may add details to their own output.
    """

    device: Device = "auto"
    seed: int = 0
    debug: bool = False
    json: bool = False


def common_options(function: F) -> F:
    """Add ``--device``, ``--seed``, ``--json``, ``--debug``; pass ``options: CommonOptions``.

    Put it below ``@click.command()``::

        @click.command()
        @run_argument
        @common_options
        def command(run: Path, options: CommonOptions) -> None: ...
    """

    @click.option(
        "--device",
        cls=GroupedOption,
        group=HARDWARE,
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Device to compute on: auto uses the GPU if there is one.",
    )
    @click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of all randomness.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, device: Device, seed: int, as_json: bool, debug: bool, **kwargs: Any
    ) -> Any:
        options = CommonOptions(device=device, seed=seed, debug=debug, json=as_json)
        return function(*args, options=options, **kwargs)

    return cast(F, wrapper)


def data_options(
    help_text: str, images_help: str = "Folder of --data's images."
) -> Callable[[F], F]:
    """Add ``--data``, ``--images`` and ``--follow-links``: the user's own examples.

    The command takes ``data: Path | None``, ``images: Path | None`` and ``follow_links: bool``, as
    ``comp.data.loading.load_task_data`` does.

    Args:
        help_text: help of ``--data``: the use of the examples, their formats, and the default.
        images_help: help of ``--images``.
    """
    path = click.Path(path_type=Path)

    def declare(function: F) -> F:
        for option in (
            click.option(
                "--follow-links",
                is_flag=True,
                help="Also read images through links that lead out of the folder of --images.",
            ),
            click.option("--images", type=path, help=images_help),
            click.option("--data", type=path, help=help_text),
        ):
            function = option(function)
        return function

    return declare


def threads_option(function: F) -> F:
    """Add ``--threads``: number of CPU threads of a runtime, passed as ``threads: int | None``."""
    option = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."
    )
    return option(function)


def run_argument(function: F) -> F:
    """Add the argument ``[RUN]``, a run directory, as ``run: Path`` (default ``runs/latest``).

    Open it with ``comp.runs.open_run``, whose error gives the remedy if there is no run.
    """
    argument = click.argument("run", type=click.Path(path_type=Path), default=LATEST_RUN)
    return argument(function)
