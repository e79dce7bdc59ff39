"""Choose the device and the threads of torch; imports torch only when called."""

import os
from typing import Literal

from comp.errors import CompExportError
from comp.utils.arguments import check_choices
from comp.utils.machine import usable_cores

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")


def torch_device(device: Device) -> str:
    """Return ``cpu`` or ``cuda``; ``auto`` is ``cuda`` if torch sees a GPU.

    Raises:
        CompExportError: ``cuda`` is requested and torch sees no GPU, or another word is given.
    """
    check_choices(device=(device, DEVICES))
    import torch

    use_usable_cores()
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise CompExportError(
            "--device cuda: torch sees no CUDA GPU here; use --device cpu, "
            "or install a CUDA build of torch"
        )
    return "cuda" if available and device != "cpu" else "cpu"


def use_usable_cores() -> None:
    """Let torch use as many threads as there are usable cores, unless ``OMP_NUM_THREADS`` is set.

    torch counts the cores of the affinity mask: under a container's quota it starts more threads than can
    run, and each waits for the slowest.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
