"""A study as a user runs it, on a small random model: real processes, killed and resumed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.plan import PruningPlan
from tests.comp.small_clip import random_clip

pytestmark = pytest.mark.slow

FILE = """
model = "{model}"
rates = [0.4]
seeds = [0]
methods = ["comp"]
{more}

[prune]
stages = 2
steps_per_stage = 1
recover_steps = 8
batch_size = 4
calibration = 4
validation = 4
dtype = "float32"

[evaluation]
limit = 20
gallery = 10

[bench]
warmup = 1
repeats = 2
threads = 1
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip(2, width=32).save(path)
    return path


def written(tmp_path, model, more=""):
    """The words of a command for a study of one cell, and its folder."""
    file, folder = tmp_path / "one.toml", tmp_path / "folder"
    file.write_text(FILE.format(model=model, more=more))
    return ["study", str(file), "--out", str(folder), "--device", "cpu"], folder


def test_one_cell_from_prune_to_report(model, tmp_path):
    words, folder = written(tmp_path, model, "keep_runs = true")
    result = CliRunner().invoke(cli, [*words, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (row,) = report["rows"]
    run = folder / "runs" / "comp-0.4-seed0"
    plan = PruningPlan.load(run / "plan.json")
    assert row["macs"] == plan.macs
    assert abs(plan.macs / plan.macs_dense - 0.6) < 0.01 * 0.6
    assert row["steps"] == [10, 10]
    assert row["params"] < report["dense"]["params"]
    assert 0 <= row["accuracy"] <= 1
    assert row["ttft_share"] > 0
    assert row["tpot_share"] is None  # of no text that is generated
    assert report["metric"] == "R@1, both ways, among 10"

    # eval of the kept run agrees with the study.
    again = CliRunner().invoke(
        cli,
        ["eval", str(run), "--limit", "20", "--gallery", "10", "--device", "cpu", "--json"],
    )
    assert again.exit_code == 0, again.output
    result = json.loads(again.stdout)
    assert result["compressed"]["accuracy"] == row["accuracy"]
    assert result["dense"]["accuracy"] == report["dense"]["accuracy"]["value"]


@pytest.mark.parametrize("ending", [signal.SIGKILL])  # Ctrl-C: of prune, in its own tests
def test_a_study_killed_while_pruning_resumes(model, tmp_path, ending):
    words, folder = written(tmp_path, model)
    state = folder / "runs" / "comp-0.4-seed0" / ".state"
    study = subprocess.Popen(
        [sys.executable, "-m", "comp.cli", *words], stderr=subprocess.PIPE, text=True
    )
    while not (state / "search.json").is_file():
        time.sleep(0.02)
        assert study.poll() is None, study.stderr.read()
    study.send_signal(ending)
    _, printed = study.communicate(timeout=60)
    if ending == signal.SIGINT:
        assert study.returncode == 130
        assert "interrupted; run the same command to continue" in printed
    else:
        end_orphans(folder)
    assert not (folder / "cells").exists()
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert (folder / "report.md").is_file()
    record = json.loads((folder / "cells" / "comp-0.4-seed0.json").read_text())
    assert record["result"]["steps"] == 10


def end_orphans(folder):
    """End the processes that a killed study left, which hold the folder's lock; wait for the lock."""
    lock = (folder / ".lock").resolve()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and lock in opened_by(process):
            os.kill(int(process.name), signal.SIGKILL)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def opened_by(process):
    """The files that a process has open; it may close some meanwhile, or end."""
    result = set()
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                result.add(link.readlink())
    return result
