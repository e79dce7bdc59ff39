"""The options of ``serve`` for a cluster of Ray."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from comp.errors import CompExportError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class FleetOptions:
    """Values of the options.

    Attributes:
        address: of a cluster that runs; None starts one.
        replicas: least and most.
        yaml: file to write instead of serving.
    """

    address: str | None
    replicas: tuple[int, int]
    target_ongoing: float | None
    models_each: int
    gpus: float
    yaml: Path | None


def fleet_options(function: F) -> F:
    """Add ``--ray`` and the options that need it; pass ``fleet: FleetOptions | None``."""

    @click.option("--ray", "on_ray", is_flag=True, help="Serve from replicas on a cluster of Ray.")
    @click.option(
        "--ray-address",
        metavar="HOST:PORT|auto",
        help="A cluster that runs already [one on this machine, for as long as the command].",
    )
    @click.option(
        "--replicas",
        metavar="N|MIN-MAX",
        default="1",
        show_default=True,
        help="Replicas; MIN-MAX follows the load.",
    )
    @click.option(
        "--target-ongoing",
        type=click.FloatRange(min=0, min_open=True),
        help="Requests of a replica, running and waiting, that MIN-MAX aims at [--max-num-seqs].",
    )
    @click.option(
        "--models-per-replica",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="Most models that a replica holds; the one unused longest makes room.",
    )
    @click.option(
        "--gpus-per-replica",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="GPUs of a replica; 0.5 lets two share one.",
    )
    @click.option(
        "--ray-yaml",
        type=click.Path(path_type=Path),
        help="Write the file that `serve deploy` of Ray takes, and serve nothing.",
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        on_ray: bool,
        ray_address: str | None,
        replicas: str,
        target_ongoing: float | None,
        models_per_replica: int,
        gpus_per_replica: float,
        ray_yaml: Path | None,
        **kwargs: Any,
    ) -> Any:
        fleet = FleetOptions(
            ray_address,
            _range(replicas),
            target_ongoing,
            models_per_replica,
            gpus_per_replica,
            ray_yaml,
        )
        if on_ray:
            return function(*args, fleet=fleet, **kwargs)
        unused = FleetOptions(None, (1, 1), None, 4, 0.0, None)
        if fleet != unused:
            raise CompExportError(
                "--ray-address, --replicas, --target-ongoing, --models-per-replica, --gpus-per-replica and "
                "--ray-yaml are for a cluster: add --ray"
            )
        return function(*args, fleet=None, **kwargs)

    return cast(F, wrapper)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise CompExportError(f"--replicas {text}: give a number such as 2, or a range such as 1-4")
    return least, most
