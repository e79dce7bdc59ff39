"""The directory that a pruning run is written to: choose it, and protect what it already holds."""

import os
from pathlib import Path

from comp.checkpoints.locate import EMBEDDED
from comp.errors import CompExportError
from comp.runs import RunDirectory

RUNS = Path("runs")


def run_of(out: Path | None, model: str, rate: float, seed: int) -> RunDirectory:
    """Return the directory of a run: ``out``, or one under ``runs/`` that names model, rate and seed."""
    if out is not None:
        return RunDirectory(out.resolve() if out.is_symlink() else out)
    name = model if model in EMBEDDED else os.path.abspath(model)  # noqa: PTH100  # links keep their names
    return RunDirectory(RUNS / f"{Path(name).name}-{rate:g}{f'-seed{seed}' if seed else ''}")


def check_free(run: RunDirectory, force: bool, resume: bool) -> None:
    """Refuse to overwrite a run. Removes nothing: with ``force`` the new run replaces it later.

    Raises:
        CompExportError: the directory is not empty, and neither ``force`` nor ``resume`` applies.
    """
    run.check_latest()
    if resume or run.is_empty:
        return
    if force:
        if not (run.record.exists() or run.is_interrupted):
            raise CompExportError(f"{run.path} is no run directory: --force will not replace it")
    elif run.is_interrupted:
        raise CompExportError(
            f"{run.path} holds an interrupted run: continue it with --resume, or start again with --force"
        )
    else:
        raise CompExportError(f"{run.path} exists: replace it with --force, or choose --out")
