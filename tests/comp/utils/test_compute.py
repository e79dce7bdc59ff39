"""Means over processes, in three of them."""

import os
import subprocess
import sys

import torch
from accelerate.state import PartialState

from comp.utils.compute import Compute


def test_unequal_shards_give_what_one_process_gives():
    done = subprocess.run(
        [sys.executable, "-m", "tests.comp.utils.averages"],
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
