"""Check whether transformers can hold a checkpoint in memory."""

from pathlib import Path

from comp.checkpoints.model_size import parameters_of
from comp.utils.machine import memory_mb

BYTES = 4  # float32
ROOM = 1.25  # times the bytes of weights, for activations and loading
GIB = 2**10  # MiB


def memory_lacking(directory: Path, beside_engine: bool = False) -> str:
    """Return why transformers cannot run a checkpoint on this machine; empty if it can.

    Args:
        directory: directory of the checkpoint.
        beside_engine: whether an engine with as many weights is in memory at the same time.
    """
    wanted = parameters_of(directory) * BYTES * (ROOM + beside_engine) / 2**20
    available = memory_mb()
    if available is None or wanted <= available:
        return ""
    beside = ", an engine beside it" if beside_engine else ""
    return (
        f"transformers needs {wanted / GIB:.0f} GiB of memory for it in float32{beside}, and "
        f"{available / GIB:.0f} are there"
    )
