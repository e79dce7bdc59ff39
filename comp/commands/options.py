"""Options every verb of the command line shares, and the argument that names a run."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from comp.utils.device import DEVICES, Device

LATEST_RUN = Path("runs/latest")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommonOptions:
    """What a command was told with the shared options.

    ``debug`` is acted on by ``comp.cli.main``; commands may add detail to their own output.
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
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Where to compute: auto takes the GPU when there is one.",
    )
    @click.option("--seed", type=int, default=0, show_default=True, help="Seed of all randomness.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, device: Device, seed: int, as_json: bool, debug: bool, **kwargs: Any
    ) -> Any:
        options = CommonOptions(device=device, seed=seed, debug=debug, json=as_json)
        return function(*args, options=options, **kwargs)

    return cast(F, wrapper)


def follow_links_option(function: F) -> F:
    """Add ``--follow-links``, below the options ``--data`` and ``--images``, as ``follow_links: bool``."""
    option = click.option(
        "--follow-links",
        is_flag=True,
        help="Also take images that links in --images lead to, wherever they lie.",
    )
    return option(function)


def run_argument(function: F) -> F:
    """Add the argument ``[RUN]``, a run directory, as ``run: Path`` (``runs/latest`` if left out).

    Open it with ``comp.runs.open_run``, whose error says what to do when there is none.
    """
    argument = click.argument("run", type=click.Path(path_type=Path), default=LATEST_RUN)
    return argument(function)
