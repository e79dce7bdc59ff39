"""Pruning by a table that was just measured, on an unknown machine."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.runs import open_run

FAST = ("--rounds", 3, "--warmup", 0, "--repeats", 1, "--held-out", 1, "--threads", 1)
QUICK = ("--stages", 2, "--steps-per-stage", 1, "--batch-size", 4, "--recover", "none")
QUICK += ("--calibration", 8, "--validation", 8, "--dtype", "float32", "--device", "cpu")


def invoke(*words):
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def prune_by(table_file: Path, checkpoint: Path, out: Path) -> None:
    """Prune to half of the largest reachable rate, which the refusal of 0.99 names."""
    words = ("prune", "--model", checkpoint, *QUICK, "--out", out, "--json")
    words += ("--cost", "latency", "--latency-table", table_file, "--rate")
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d") as refused:
        invoke(*words, 0.99)
    most = float(str(refused.value).partition("at most ")[2][:4])
    actual = json.loads(invoke(*words, most / 2).stdout)
    times = actual["milliseconds"]
    assert actual["rate_of"] == "latency"
    assert actual["rate"] == pytest.approx(1 - times["compressed"] / times["dense"])
    assert 0 < actual["rate"] < most + 0.01  # a head may be a large step
    assert open_run(out).load_plan().milliseconds == pytest.approx(times["compressed"])
