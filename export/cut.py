"""A run from a plan alone: the checkpoint is cut, nothing is searched or trained."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comp.checkpoints import read_config
from comp.dense_model import described
from comp.errors import CompExportError
from comp.files import write_text, writing_directory
from comp.fitting import check_plan_is_of
from comp.plan import PruningPlan
from comp.registry import family_of
from comp.runs import RUN_VERSION, RunDirectory
from comp.slim_shapes import SlimShape
from export.slim import write_slim_checkpoint

MADE_BY = "cut"  # `made_by` in run.json
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
        run: the directory; what is there goes.
        name: of the dense model, as the run records it.
        dense: its checkpoint.
        plan: what to remove.
        at: told how many of all tensors are written.

    Returns:
        The content of ``run.json``.

    Raises:
        CompExportError: the plan is of another model or family, or disk trouble.
    """
    config = read_config(dense)
    family = family_of(config.get("model_type"))
    if family is None or family.name != plan.family:
        raise CompExportError(
            f"the plan is of a {plan.family}, {name} is a {config.get('model_type')}: pass the model that "
            "the plan was made for with --model"
        )
    plan = plan.model_copy(update={"model": name})
    record = _record(run, name, dense, plan)
    with writing_directory(run.path) as directory:
        whole = RunDirectory(directory)
        if family.name == "llava":
            write_slim_checkpoint(dense, plan, whole.checkpoint, at=at)
        else:
            _cut_in_memory(dense, plan, whole.checkpoint)
        plan.save(whole.plan_file)
        write_text(whole.stages, "")  # none
        write_text(whole.record, json.dumps(record, indent=1) + "\n")
    return record


def was_cut(run: RunDirectory) -> bool:
    """Whether ``cut`` wrote what is there."""
    try:
        return bool(run.read_record().get("made_by") == MADE_BY)
    except (OSError, ValueError, AttributeError):
        return False


def _cut_in_memory(dense: Path, plan: PruningPlan, out: Path) -> None:
    """A CLIP or a BLIP, which is small, by its adapter."""
    from comp.families.loading import load_adapter

    SlimShape.from_config(read_config(dense), str(dense)).planned(plan)  # refuses another model's
    adapter = load_adapter(dense, "cpu")
    check_plan_is_of(plan, adapter.blocks, str(dense))
    adapter.cut(plan).save(out)


def _record(run: RunDirectory, name: str, dense: Path, plan: PruningPlan) -> dict[str, Any]:
    """As `prune` writes it, as far as it is known."""
    return {
        "version": RUN_VERSION,
        "run": run.path.name,
        "made_by": MADE_BY,
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
