"""Pruning in two processes. ``accelerate launch`` starts them through torchrun, which is used here."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from comp.cli import cli
from comp.runs import open_run
from tests.comp.commands.test_prune_command import QUICK

LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node", "2")


@pytest.mark.slow
def test_two_processes_write_one_run_with_the_plan_of_one(checkpoint, tmp_path):
    out = tmp_path / "run"
    prune = ["prune", "--model", str(checkpoint), "--rate", "0.4", "--out", str(out), *QUICK]
    done = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "comp.cli", *prune, "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stdout.count('"run"') == 1, "only one process reports"
    run = open_run(out)
    assert abs(run.load_plan().rate - 0.4) < 0.01
    slim = load_file(run.checkpoint / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in slim.values())
    assert run.read_record()["processes"] == 2
    one = json.loads(
        CliRunner()
        .invoke(cli, [*prune[: -len(QUICK) - 1], str(tmp_path / "one"), *QUICK, "--json"])
        .stdout
    )
    alone, plan = open_run(one["run"]).load_plan(), run.load_plan()
    assert (plan.blocks, plan.drops, plan.workload) == (alone.blocks, alone.drops, alone.workload)
