"""Prepare the cells of a study on a cluster of Ray, whose nodes share its folder.

A cell is a run directory that can be resumed: when its worker dies, another one goes on where it was.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from comp.commands.options import CommonOptions
from serve.study.cells import Runner, Steps
from serve.study.folder import StudyFolder
from serve.study.grid import Cell
from serve.study.schema import Study

RETRIES = 3  # a cell that ends four workers has failed


@dataclass(frozen=True)
class Share:
    """The resources of the cluster that a cell takes."""

    cpus: int
    gpus: float


def share_of(jobs: int, device: str) -> Share:
    """Return the share of a cell if ``jobs`` run at a time; no more than one node has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def part(name: str, most: float) -> float:
        everything = [node.get(name, 0.0) for node in nodes]
        return min(sum(everything) / jobs, max(everything, default=0.0), most)

    gpus = 0.0 if device == "cpu" else part("GPU", 1.0)
    return Share(max(1, int(part("CPU", float("inf")))), gpus)


def prepare_on_ray(works: Sequence[tuple[Runner, Cell]], share: Share) -> list[Steps]:
    """Prune and export cells on the connected cluster; failures are kept for their records.

    If the wait is interrupted, the workers and their processes are killed; their runs can be resumed.
    """
    remote = ray.remote(_prepare).options(
        num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES
    )
    begun = []
    for runner, cell in works:
        place = str(runner.folder.path.resolve())
        runner.note("waiting for a worker, pruning, exporting")
        begun.append(
            remote.remote(runner.study, place, runner.options, cell, share.cpus, str(Path.cwd()))
        )
    try:
        return [_steps(each, *work) for each, work in zip(begun, works, strict=True)]
    except BaseException:
        for each in begun:
            ray.cancel(each, force=True)
        raise


def _steps(begun: Any, runner: Runner, cell: Cell) -> Steps:
    steps = Steps(runner, cell)
    try:
        steps.seconds, steps.failed = ray.get(begun)
    except RayError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        steps.failed = {"step": "prune", "reason": f"its worker was lost: {reason}"}
    return steps


def _prepare(
    study: Study, folder: str, options: CommonOptions, cell: Cell, threads: int, place: str
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Prepare a cell on a worker; ``place`` is what relative paths of the study are of."""
    os.chdir(place)
    runner = Runner(study, StudyFolder(Path(folder)), options, None, lambda _: None)
    steps = runner.prepare(cell, threads)
    return steps.seconds, steps.failed
