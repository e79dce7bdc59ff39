"""Choose the device of torch; imports torch only to check for a GPU."""

from typing import Literal

from comp.errors import CompExportError
from comp.utils.arguments import check_choices

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")


def torch_device(device: Device) -> str:
    """Return ``cpu`` or ``cuda``; ``auto`` is ``cuda`` if torch sees a GPU.

    Raises:
        CompExportError: ``cuda`` is requested and torch sees no GPU, or another word is given.
    """
    check_choices(device=(device, DEVICES))
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise CompExportError(
            "--device cuda: torch sees no CUDA GPU here; use --device cpu, "
            "or install a CUDA build of torch"
        )
    return "cuda" if available and device != "cpu" else "cpu"
