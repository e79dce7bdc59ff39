"""Runs of small random models of CLIP and of BLIP's four tasks, made once for all processes of a test run."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from comp.cli import cli
from tests.comp.small_blip import TASKS, random_blip
from tests.comp.small_clip import random_clip

KINDS = ("clip", *TASKS)
WHOLE = "whole"  # a file beside a run that was made to its end
WIDTH = 64  # heads of 16: TensorRT-RTX has no fused attention of 8 in half precision
QUICK = ("--stages", "2", "--steps-per-stage", "1", "--recover-steps", "1", "--batch-size", "4")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")


def fresh_runs(folder: Callable[[str], Path], shared: Path) -> Callable[[str], Path]:
    """Return a function that copies a run of a kind, so that tests are independent.

    Args:
        folder: makes a new directory with a name.
        shared: directory of the runs that are copied; the process that needs one first makes it.
    """

    def fresh(kind: str) -> Path:
        base = shared / kind
        shared.mkdir(exist_ok=True)
        with (shared / f"{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (base / WHOLE).exists():
                shutil.rmtree(base, ignore_errors=True)  # of an attempt that failed
                _make(kind, base)
                (base / WHOLE).touch()
        copy = folder(f"{kind}-copy") / "run"
        shutil.copytree(base / "run", copy)
        return copy

    return fresh


def _make(kind: str, base: Path) -> None:
    adapter = (
        random_clip(2, width=WIDTH) if kind == "clip" else random_blip(kind, seed=2, width=WIDTH)
    )
    adapter.save(base / "dense")
    _call("prune", "--model", base / "dense", "--rate", "0.5", "--out", base / "run", *QUICK)
    _call("onnx", base / "run", "--no-check")


def _call(*words: object) -> None:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
