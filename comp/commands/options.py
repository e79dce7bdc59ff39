"""Options that all commands share, and the argument that names a run."""

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
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Device to compute on: auto uses the GPU if there is one.",
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
    """Add ``--follow-links`` after the options ``--data`` and ``--images``; pass ``follow_links: bool``."""
    option = click.option(
        "--follow-links",
        is_flag=True,
        help="Also read images through links that lead out of the folder of --images.",
    )
    return option(function)


def run_argument(function: F) -> F:
    """Add the argument ``[RUN]``, a run directory, as ``run: Path`` (default ``runs/latest``).

    Open it with ``comp.runs.open_run``, whose error gives the remedy if there is no run.
    """
    argument = click.argument("run", type=click.Path(path_type=Path), default=LATEST_RUN)
    return argument(function)
