"""A race of searches: choose the kinds of modes to prune a model by.

Not in the paper. Eq. 8 compares modes by their cost before recovery. Of two models with the same loss then,
one may recover and the other not: training replaces what removed parameters computed, but not what dropped
tokens contained. Therefore lanes with one kind of modes each race against a lane with all modes: each runs a
whole search and the first steps of recovery, and the lane with the lowest validation loss is continued.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter, Mode
from comp.errors import CompExportError
from comp.pipeline.resolve import ResolvedRequest
from comp.pipeline.steps import RunContext, job_of, recover_slim, search_and_cut, validate
from comp.search.job import PruningJob, modes_of, reaches
from comp.utils.files import write_text

MOST_LANES = 3
# Fewest recovery steps left to the winner of a race by default, as a multiple of the race's own.
LEAST_LEFT = 3


@dataclass(frozen=True)
class Lane:
    """A contestant: the modes that it prunes. Its search is saved in the folder ``name``."""

    name: str
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Result of a lane: validation loss in nats and metric after the race's steps of recovery."""

    lane: Lane
    loss: float
    metric: float

    def record(self, chosen: bool) -> dict[str, Any]:
        """Return its entry in ``run.json``."""
        return {
            "name": self.lane.name,
            "modes": list(self.lane.modes),
            "validation_loss": self.loss,
            "metric": self.metric,
            "chosen": chosen,
        }


def lanes_of(modes: Sequence[Mode], reaches: Callable[[Sequence[Mode]], bool]) -> list[Lane]:
    """Return the lanes: all modes, only parameters, only tokens, if these kinds reach the rate alone."""
    lanes = [Lane("all", tuple(mode.name for mode in modes))]
    for name, kind in (
        ("parameters", [mode for mode in modes if mode.part is not None]),
        ("tokens", [mode for mode in modes if mode.tokens is not None]),
    ):
        if 0 < len(kind) < len(modes) and reaches(kind):
            lanes.append(Lane(name, tuple(mode.name for mode in kind)))
    return lanes


def has_room(search: int, race: int, steps: int) -> bool:
    """Whether three lanes can race and leave enough recovery to the winner; see ``check_steps``."""
    return steps >= MOST_LANES * search + (MOST_LANES - 1 + LEAST_LEFT) * race


def check_steps(lanes: Sequence[Lane], search: int, race: int, steps: int) -> None:
    """Refuse a race that needs more training steps than the run has.

    Args:
        lanes: the lanes of the race.
        search: training steps of one search.
        race: steps of recovery before lanes are compared.
        steps: training steps of the whole run.

    Raises:
        CompExportError: names both numbers of steps.
    """
    needed = len(lanes) * (search + race)
    if needed > steps:
        raise CompExportError(
            f"--race {race} between {', '.join(lane.name for lane in lanes)} takes {needed} training "
            f"steps, and there are {steps}: give more --recover-steps, or --race 0"
        )


def winner(verdicts: Sequence[Verdict]) -> Lane:
    """Return the lane with the lowest loss."""
    return min(verdicts, key=lambda verdict: verdict.loss).lane


VERDICT = "verdict.json"  # in the folder of a lane


def run_race(
    context: RunContext, settings: ResolvedRequest, state: Path, loaded: list[FamilyAdapter]
) -> tuple[ResolvedRequest, Path, list[dict[str, Any]]]:
    """Run the race, if there is one, and choose the winner.

    An interrupted lane resumes like any search. A lane with a verdict is not run again.

    Args:
        context: compute, data and progress of the run.
        settings: the resolved request.
        state: folder of the run's state; each lane has a folder in it.
        loaded: the dense model, if it is in memory; the first search pops it.

    Returns:
        The winner's settings, the folder of its search, and the entries of all lanes in ``run.json``
        (empty if there was no race).
    """
    request, compute = settings.request, context.compute
    lanes = _lanes(job_of(context, settings, loaded[0], state))
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
            slim, outcome, distiller = search_and_cut(context, lane_settings, folder, loaded)
            distiller = distiller or lane_settings.distiller(compute, context.load)
            plan, lane_settings = outcome.plan, lane_settings.with_steps_left_by(outcome)
            recover_slim(context, lane_settings, slim, plan, folder, distiller, until=request.race)
            metric, loss = validate(context, slim, plan)
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
