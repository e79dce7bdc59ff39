"""Whether a checkpoint fits into memory as transformers holds it."""

from pathlib import Path

from comp.checkpoints.model_size import parameters_of
from comp.utils.machine import memory_mb

BYTES = 4  # float32
ROOM = 1.25  # of the weights' bytes, activations and loading included
GIB = 2**10  # MiB


def memory_lacking(directory: Path, beside_engine: bool = False) -> str:
    """Why transformers cannot run a checkpoint here; empty where it can.

    Args:
        directory: of the checkpoint.
        beside_engine: whether an engine of as many weights is in memory at the same time.
    """
    wanted = parameters_of(directory) * BYTES * (ROOM + beside_engine) / 2**20
    there = memory_mb()
    if there is None or wanted <= there:
        return ""
    beside = ", an engine beside it" if beside_engine else ""
    return (
        f"transformers needs {wanted / GIB:.0f} GiB of memory for it in float32{beside}, and "
        f"{there / GIB:.0f} are there"
    )
