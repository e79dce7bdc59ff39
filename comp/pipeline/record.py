"""What a finished run says of itself, and its directory."""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter
from comp.figures.run_figures import save_figures
from comp.latency.table import LatencyTable
from comp.pipeline.options import PruneOptions
from comp.pipeline.request import PruneRequest, plain
from comp.pipeline.resolve import ResolvedRequest
from comp.plan import PruningPlan, Task
from comp.runs import RUN_VERSION, RunDirectory
from comp.search.job import Outcome
from comp.search.saved_state import STAGES
from comp.utils.disk import bytes_of
from comp.utils.files import write_text, writing_directory


def record_of(
    request: PruneRequest,
    options: PruneOptions,
    run: RunDirectory,
    dense: Mapping[str, Any],
    outcome: Outcome,
    metric: float,
    settings: ResolvedRequest,
    task: Task,
) -> dict[str, Any]:
    plan = outcome.plan
    return {
        "version": RUN_VERSION,
        "run": run.path.name,
        **dense,
        "method": plan.method,
        "faithful": request.faithful,
        "modes": list(settings.request.search.modes),
        "rate_asked": request.search.rate,
        "rate": plan.rate,
        "rate_of": plan.rate_of,
        "macs": {"dense": plan.macs_dense, "compressed": plan.macs},
        "metric": {
            "name": _metric_name(request, task),
            "dense": outcome.dense_metric,
            "before_recovery": outcome.pruned_metric,
            "compressed": metric,
        },
        "recovery": settings.recovery,
        "reconstruction": settings.request.search.reconstruct,
        "steps": {"search": outcome.steps, "recovery": settings.request.recover.steps},
        "seed": request.search.seed,
        "options": options.recorded(),
        "request": plain(request),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("comp-export", "torch", "transformers", "numpy")},
        },
    }


def times_of(plan: PruningPlan, table: LatencyTable | None) -> dict[str, Any]:
    """What ``run.json`` says of predicted time."""
    if table is None:
        return {}
    return {
        "milliseconds": {"dense": plan.milliseconds_dense, "compressed": plan.milliseconds},
        "latency_target": table.target.model_dump(),
    }


def times_fine_tuning(wall: float, seconds: Mapping[str, float]) -> float | None:
    """How many times as long as plain fine-tuning of as many steps; none where nothing was trained.

    That is taken to last as long as this run's own steps did and the wait for their batches: steps with
    masks in the search, of the cut model in recovery, both without the teacher's pass.
    """
    if "training" not in seconds:
        return None
    return wall / (seconds["training"] + seconds["data"])


def _metric_name(request: PruneRequest, task: Task) -> str:
    """What accuracy is of: see ``Scored.correct``; of retrieval, the best of a batch, both ways."""
    return {
        "question": "validation exact match",
        "caption": "validation next-token accuracy",
        "statement": "validation accuracy",
        "retrieval": f"validation R@1 among {request.sizes.batch_size}",
    }[task]


def write_run(
    run: RunDirectory,
    slim: FamilyAdapter,
    plan: PruningPlan,
    record: dict[str, Any],
    folder: Path,
) -> None:
    """Write what a finished run has; its record comes last."""
    run.clear()
    needed = bytes_of(list(slim.model.parameters()))
    with writing_directory(run.checkpoint, needed) as temporary:
        slim.save(temporary)
    plan.save(run.plan_file)
    write_text(run.stages, (folder / STAGES).read_text(encoding="utf-8"))
    write_text(run.record, json.dumps(record, indent=1) + "\n")
    save_figures(run)
    run.point_latest_here()
    run.forget()
