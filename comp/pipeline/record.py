"""Write a finished run: its record ``run.json`` and the other files of its directory."""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter
from comp.data.split import Split
from comp.figures.run_figures import save_figures
from comp.latency.table import LatencyTable
from comp.pipeline.options import PruneOptions
from comp.pipeline.request import PruneRequest, as_json
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
    """Return the content of ``run.json`` (``docs/reference/formats.md``), without times."""
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
        "request": as_json(request),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("comp-export", "torch", "transformers", "numpy")},
        },
    }


def times_of(plan: PruningPlan, table: LatencyTable | None) -> dict[str, Any]:
    """Return the entries of ``run.json`` about predicted time; none without a latency table."""
    if table is None:
        return {}
    return {
        "milliseconds": {"dense": plan.milliseconds_dense, "compressed": plan.milliseconds},
        "latency_target": table.target.model_dump(),
    }


def times_fine_tuning(wall: float, seconds: Mapping[str, float]) -> float | None:
    """Return wall time as a multiple of plain fine-tuning with as many steps; ``None`` without training.

    The time of fine-tuning is that of this run's own training steps and of waiting for their batches: steps
    with masks in the search and of the cut model in recovery, both without the teacher's forward pass.

    Args:
        wall: wall time in seconds.
        seconds: seconds by activity, as in ``comp.utils.compute.Compute.seconds``.
    """
    if "training" not in seconds:
        return None
    return wall / (seconds["training"] + seconds["data"])


def _metric_name(request: PruneRequest, task: Task) -> str:
    """Return the name of the metric of a task (``Scored.correct``); retrieval ranks within a batch."""
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
    split: Split | None,
) -> None:
    """Write the files of a finished run, the record last.

    Args:
        run: the run directory.
        slim: the recovered slim model.
        plan: its plan.
        record: the content of ``run.json``.
        folder: folder of the search, which holds ``stages.jsonl``.
        split: the split of the run's own data.
    """
    run.clear()
    needed = bytes_of(list(slim.model.parameters()))
    with writing_directory(run.checkpoint, needed) as temporary:
        slim.save(temporary)
    plan.save(run.plan_file)
    write_text(run.stages, (folder / STAGES).read_text(encoding="utf-8"))
    if split is not None:
        split.save(run.split)
    write_text(run.record, json.dumps(record, indent=1) + "\n")
    save_figures(run)
    run.point_latest_here()
    run.forget()
