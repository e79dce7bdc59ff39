"""Running a race (``comp.pipeline.race``): a search and the first steps of recovery for each lane."""

import json
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter
from comp.pipeline.race import Lane, Verdict, check_steps, has_room, lanes_of, winner
from comp.pipeline.resolve import Settled
from comp.pipeline.steps import Site, job_of, recovered, searched, validated
from comp.search.job import Job, modes_of, reaches
from comp.utils.files import write_text

VERDICT = "verdict.json"  # of a lane


def raced(
    site: Site, settings: Settled, state: Path, loaded: list[FamilyAdapter]
) -> tuple[Settled, Path, list[dict[str, Any]]]:
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


def _lanes(job: Job) -> list[Lane]:
    modes = modes_of(job.adapter, job.options.modes)
    return lanes_of(modes, lambda some: reaches(job, some))
