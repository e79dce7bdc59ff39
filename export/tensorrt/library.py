"""Find the installed TensorRT: ``tensorrt`` (data-centre GPUs) or ``tensorrt_rtx``; both have one API.

``tensorrt`` builds on the GPU that the engine will run on. ``tensorrt_rtx`` compiles ahead of time,
on a machine without a GPU, for chosen compute capabilities.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

from comp.errors import CompExportError
from comp.utils.install import install_hint
from export.tensorrt.gpu import gpu_capability

ModuleName = Literal["tensorrt", "tensorrt_rtx"]
EXTRAS: dict[ModuleName, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class TensorRT:
    """An importable TensorRT."""

    name: ModuleName
    module: ModuleType
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds without a GPU, for GPUs of other machines."""
        return self.name == "tensorrt_rtx"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities for which it compiles ahead of time, such as ``8.9``."""
        if not self.ahead_of_time:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM"))


def find_tensorrt(wanted: ModuleName | None = None) -> TensorRT:
    """Import the module to build or run with.

    Args:
        wanted: one of the two; by default ``tensorrt`` if it is installed and there is a GPU, otherwise
            ``tensorrt_rtx``.

    Raises:
        CompExportError: it is not installed; names the extra to install.
    """
    order: tuple[ModuleName, ...]
    if wanted is not None:
        order = (wanted,)
    elif gpu_capability() is not None:
        order = ("tensorrt", "tensorrt_rtx")
    else:
        order = ("tensorrt_rtx", "tensorrt")
    for name in order:
        module = _load(name)
        if module is not None:
            return TensorRT(name, module, module.__version__)
    if wanted is not None:
        raise CompExportError(f"{wanted} is not installed: {install_hint(EXTRAS[wanted])}")
    raise CompExportError(
        f"no TensorRT is installed: {install_hint('tensorrt')} on a machine with a data-centre GPU, or "
        "with the extra tensorrt-rtx for RTX GPUs and to build without a GPU"
    )


def _load(name: ModuleName) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None
