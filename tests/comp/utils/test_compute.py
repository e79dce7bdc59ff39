"""Means over processes, in two of them. ``accelerate launch`` starts them through torchrun."""

import os
import subprocess
import sys

LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node", "2")


def test_shards_of_unequal_size_are_weighed_and_every_process_reduces():
    done = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "tests.comp.utils.averages"],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-9000:]
