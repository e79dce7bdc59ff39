"""Means over processes, in two of them. ``accelerate launch`` starts them through torchrun."""

import os
import subprocess
import sys

import torch
from accelerate.state import PartialState

from comp.utils.compute import Compute

LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node", "2")


def test_means_weigh_shards_by_size_and_every_process_reduces():
    done = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "tests.comp.utils.averages"],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-9000:]


def test_a_process_may_compute_on_one_device_after_another():
    Compute("cpu", "float32")
    PartialState._shared_state["device"] = torch.device("cuda")  # as after a run on a GPU
    assert Compute("cpu", "float32").device.type == "cpu"
