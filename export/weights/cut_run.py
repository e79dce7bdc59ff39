"""Make a run from a plan alone: the checkpoint is cut, nothing is searched or trained."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comp.checkpoints.dense_model import described
from comp.checkpoints.locate import read_config
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.masks import check_plan_is_of
from comp.plan import PruningPlan
from comp.registry.families import family_of
from comp.runs import MADE, RUN_VERSION, RunDirectory
from comp.utils.disk import disk_errors
from comp.utils.files import write_text
from comp.utils.json_files import read_object
from export.weights.slim import write_slim_checkpoint

MADE_BY = "cut"
PACKAGES = ("comp-export", "numpy")


def cut_run(
    run: RunDirectory,
    name: str,
    dense: Path,
    plan: PruningPlan,
    at: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``checkpoint/``, ``plan.json``, ``run.json`` and a ``stages.jsonl`` without stages.

    Args:
        run: the directory; its contents are replaced.
        name: name of the dense model, as the run records it.
        dense: its checkpoint.
        plan: the plan to apply.
        at: called with the number of tensors written and the number of all.

    Returns:
        The content of ``run.json``.

    Raises:
        CompExportError: the plan is of another model or family, or disk trouble.
    """
    config = read_config(dense)
    family = family_of(config.get("model_type"))
    if family is None or family.name != plan.family:
        raise CompExportError(
            f"that is a plan of a {plan.family}, and {name} is a {config.get('model_type')}: pass the model "
            "that the plan was made for with --model"
        )
    plan = plan.model_copy(update={"model": name})
    record = _record(run, name, dense, plan)
    run.begin({MADE: MADE_BY})
    checkpoint = run.state / run.checkpoint.name  # the old contents stay until this is complete
    try:
        if family.streams:
            write_slim_checkpoint(dense, plan, checkpoint, at=at)
        else:
            _cut_in_memory(dense, plan, checkpoint)
    except CompExportError:
        run.forget()
        raise
    run.clear()
    with disk_errors(run.path):
        checkpoint.replace(run.checkpoint)
    plan.save(run.plan_file)
    write_text(run.stages, "")  # none
    write_text(run.record, json.dumps(record, indent=1) + "\n")
    run.forget()
    return record


def was_cut(run: RunDirectory) -> bool:
    """Whether ``cut`` wrote the run."""
    return _made_by(run.record) == MADE_BY


def was_begun(run: RunDirectory) -> bool:
    """Whether ``cut`` was interrupted before it had written the run."""
    return not run.record.exists() and _made_by(run.request) == MADE_BY


def _made_by(path: Path) -> Any:
    try:
        return read_object(path, "").get(MADE)
    except CompExportError:
        return None


def _cut_in_memory(dense: Path, plan: PruningPlan, out: Path) -> None:
    """Cut a CLIP or a BLIP, which is small, with its adapter."""
    from comp.families.loading import load_adapter

    SlimShape.from_config(read_config(dense), str(dense)).planned(
        plan
    )  # refuses a plan of another model
    adapter = load_adapter(dense, "cpu")
    check_plan_is_of(plan, adapter.blocks, str(dense))
    adapter.cut(plan).save(out)


def _record(run: RunDirectory, name: str, dense: Path, plan: PruningPlan) -> dict[str, Any]:
    """The run record as `prune` writes it, as far as it applies."""
    return {
        "version": RUN_VERSION,
        "run": run.path.name,
        MADE: MADE_BY,
        **described(name, dense),
        "method": plan.method,
        "modes": [],
        "rate_asked": plan.rate,
        "rate": plan.rate,
        "rate_of": plan.rate_of,
        "macs": {"dense": plan.macs_dense, "compressed": plan.macs},
        "recovery": "none",
        "reconstruction": False,
        "steps": {"search": 0, "recovery": 0},
        "versions": {package: version(package) for package in PACKAGES},
    }
