"""The device that torch works on. Loads torch only when it is asked whether there is a GPU."""

from typing import Literal

from comp.errors import CompExportError

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")


def torch_device(device: Device) -> str:
    """``cpu`` or ``cuda``, for torch; ``auto`` is ``cuda`` when torch sees a GPU.

    Raises:
        CompExportError: when ``cuda`` is asked for and torch sees no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise CompExportError(
            "--device cuda: torch sees no CUDA GPU here; use --device cpu, "
            "or install a CUDA build of torch"
        )
    return "cuda" if available and device != "cpu" else "cpu"
