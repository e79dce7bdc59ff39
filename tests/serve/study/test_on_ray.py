"""A study on a cluster: two workers, one killed; the results are those of one process."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec

import psutil
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from tests.comp.small_clip import random_clip
from tests.serve.study.test_run import FILE

PATIENCE = 300.0


def written(folder, model, seeds):
    file = folder / "study.toml"
    text = FILE.format(model=model, more="keep_runs = true")
    file.write_text(text.replace("seeds = [0]", f"seeds = {seeds}"))
    return ["study", str(file), "--out", str(folder / "out"), "--device", "cpu"]


def results(folder, seed):
    """What does not depend on the clock: plan, accuracy and costs of a cell."""
    cell = f"comp-0.4-seed{seed}"
    record = json.loads((folder / "out" / "cells" / f"{cell}.json").read_text())
    assert record["result"] is not None, record["reason"]
    timed = ("latency", "times_fine_tuning")  # the latter is unknown of a run that was interrupted
    kept = {key: each for key, each in record["result"].items() if key not in timed}
    return kept, json.loads((folder / "out" / "runs" / cell / "plan.json").read_text())


def pruning(study):
    """The workers that prune, each with the process that it started."""
    found = {}
    for each in psutil.Process(study.pid).children(recursive=True):
        words = each.cmdline()
        if "prune" in words and "--out" in words:
            found[words[words.index("--out") + 1]] = (each.parent(), each)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")
def test_a_cell_whose_worker_is_killed_has_the_result_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the workers: other numbers round otherwise
    model = tmp_path / "dense"
    random_clip(2, width=32).save(model)
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    spread.mkdir()
    alone.mkdir()
    words = written(spread, model, [0, 1])
    log = tmp_path / "log.txt"
    with log.open("w") as errors:
        command = [sys.executable, "-m", "comp.cli", *words, "--ray"]
        command += ["--jobs", str(max(2, psutil.cpu_count()))]
        study = subprocess.Popen(command, stdout=errors, stderr=errors)
    try:
        state = spread / "out" / "runs" / "comp-0.4-seed1" / ".state" / "search.json"
        deadline = time.monotonic() + PATIENCE
        while not state.is_file():
            assert study.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker, process = pruning(study)[str(state.parents[1])]
        worker.kill()
        psutil.wait_procs([process], PATIENCE)
        assert not process.is_running(), "a process of a worker ends with it"
        assert study.wait(PATIENCE) == 0, log.read_text()
    finally:
        for child in (
            psutil.Process(study.pid).children(recursive=True) if study.poll() is None else []
        ):
            child.kill()
        study.kill()
    one = CliRunner().invoke(cli, written(alone, model, [1]))
    assert one.exit_code == 0, one.output
    assert results(spread, 1) == results(alone, 1)
    assert results(spread, 0) != results(spread, 1)


def test_an_address_without_ray_is_refused(tmp_path):
    model = tmp_path / "dense"
    random_clip(2, width=32).save(model)
    result = CliRunner().invoke(cli, [*written(tmp_path, model, [0]), "--ray-address", "auto"])
    assert isinstance(result.exception, CompExportError)
    assert "add --ray" in str(result.exception)
