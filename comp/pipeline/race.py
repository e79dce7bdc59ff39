"""A race of searches: which kinds of modes a model is best pruned by.

Ours, not the paper's. Eq. 8 compares what modes cost before recovery, and of two models that are equally
wrong then, one may recover and the other not: a model learns again what lost parameters did, but not what
lost tokens held. So each kind of mode alone races against all of them, through a whole search and the first
steps of recovery, and the one with the least validation loss goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter, Mode
from comp.errors import CompExportError
from comp.pipeline.resolve import ResolvedRequest
from comp.pipeline.steps import RunContext, job_of, recovered, searched, validated
from comp.search.job import PruningJob, modes_of, reaches
from comp.utils.files import write_text

MOST_LANES = 3
LEAST_LEFT = 3  # times the race's steps of recovery for the winner, where nobody asked for a race


@dataclass(frozen=True)
class Lane:
    """Modes that race together, and the folder of their search, by this name."""

    name: str
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a lane: the validation loss in nats behind the race's steps of recovery."""

    lane: Lane
    loss: float
    metric: float

    def record(self, chosen: bool) -> dict[str, Any]:
        """Its entry in ``run.json``."""
        return {
            "name": self.lane.name,
            "modes": list(self.lane.modes),
            "validation_loss": self.loss,
            "metric": self.metric,
            "chosen": chosen,
        }


def lanes_of(modes: Sequence[Mode], reaches: Callable[[Sequence[Mode]], bool]) -> list[Lane]:
    """All modes, and of parameters and of tokens alone those that reach the rate without the others."""
    lanes = [Lane("all", tuple(mode.name for mode in modes))]
    for name, kind in (
        ("parameters", [mode for mode in modes if mode.part is not None]),
        ("tokens", [mode for mode in modes if mode.tokens is not None]),
    ):
        if 0 < len(kind) < len(modes) and reaches(kind):
            lanes.append(Lane(name, tuple(mode.name for mode in kind)))
    return lanes


def has_room(search: int, race: int, steps: int) -> bool:
    """Whether three lanes can race and leave most of recovery to the winner; see ``check_steps``."""
    return steps >= MOST_LANES * search + (MOST_LANES - 1 + LEAST_LEFT) * race


def check_steps(lanes: Sequence[Lane], search: int, race: int, steps: int) -> None:
    """Refuse a race that takes more than there is.

    Args:
        lanes: that race.
        search: training steps of one search.
        race: steps of recovery before lanes are compared.
        steps: of training in all.

    Raises:
        CompExportError: naming both.
    """
    needed = len(lanes) * (search + race)
    if needed > steps:
        raise CompExportError(
            f"--race {race} between {', '.join(lane.name for lane in lanes)} takes {needed} training "
            f"steps, and there are {steps}: give more --recover-steps, or --race 0"
        )


def winner(verdicts: Sequence[Verdict]) -> Lane:
    """The lane of least loss."""
    return min(verdicts, key=lambda verdict: verdict.loss).lane


VERDICT = "verdict.json"  # of a lane


def raced(
    site: RunContext, settings: ResolvedRequest, state: Path, loaded: list[FamilyAdapter]
) -> tuple[ResolvedRequest, Path, list[dict[str, Any]]]:
    """The settings of the lane that won, the folder in which it goes on, and what became of all.

    A lane that is cut off goes on as any search does; one that has its verdict is not run again.
    """
    request, compute = settings.request, site.compute
    lanes = _lanes(job_of(site, settings, loaded[0], state))
    search, steps = request.search.comp_steps, request.search.steps + request.recover.steps
    crowded = request.race_if_room and not has_room(search, request.race, steps)
    if len(lanes) == 1 or crowded:
        return settings, state, []
    check_steps(lanes, search, request.race, steps)
    lost = (len(lanes) - 1) * (search + request.race)
    settings = settings.with_recovery_of(request.recover.steps - lost)
    verdicts = []
    for lane in lanes:
        folder, lane_settings = state / lane.name, settings.with_search(modes=lane.modes)
        file = folder / VERDICT
        if not file.exists():
            if compute.is_main:
                folder.mkdir(exist_ok=True)
            compute.accelerator.wait_for_everyone()
            slim, outcome, distiller = searched(site, lane_settings, folder, loaded)
            distiller = distiller or lane_settings.distiller(compute, site.load)
            plan, lane_settings = outcome.plan, lane_settings.with_steps_left_by(outcome)
            recovered(site, lane_settings, slim, plan, folder, distiller, until=request.race)
            metric, loss = validated(site, slim, plan)
            del slim, distiller
            if compute.is_main:
                write_text(file, json.dumps({"loss": loss, "metric": metric}))
            compute.accelerator.wait_for_everyone()
        verdicts.append(Verdict(lane, **json.loads(file.read_text(encoding="utf-8"))))
    won = winner(verdicts)
    records = [verdict.record(verdict.lane == won) for verdict in verdicts]
    return settings.with_search(modes=won.modes), state / won.name, records


def _lanes(job: PruningJob) -> list[Lane]:
    modes = modes_of(job.adapter, job.options.modes)
    return lanes_of(modes, lambda some: reaches(job, some))
