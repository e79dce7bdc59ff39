"""Where and in which precision torch works: device, autocast, several processes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from comp.errors import CompExportError
from comp.utils.device import torch_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Compute:
    """Device, precision and, under ``accelerate launch``, the other processes.

    Weights stay fp32 while they are trained; ``dtype`` is that of the matrix products.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 where the
            processor multiplies it fast, else float32.

    Raises:
        CompExportError: for float16 on a CPU, or ``cuda`` without a GPU.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto") -> None:
        place = torch_device(device)  # type: ignore[arg-type]
        name = _auto_dtype(place) if dtype == "auto" else dtype
        if name == "float16" and place == "cpu":
            raise CompExportError("--dtype float16 needs a GPU: use bfloat16 or float32 on a CPU")
        self.dtype = DTYPES[name]
        # Precision is ours, not accelerate's, which allows a process only one for all its life.
        self.accelerator = Accelerator(cpu=place == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        self.seconds: dict[str, float] = {}
        self._timing = False

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the wall seconds of the block to ``seconds[what]``; inside another block that counts them."""
        if self._timing:
            yield
            return
        self._timing = True
        began = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":  # kernels run behind: wait for those of this block
                torch.cuda.synchronize(self.device)
        finally:
            self._timing = False
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def shard(self, items: list[Any]) -> list[Any]:
        """This process's share of a batch's items; every process gets as many."""
        return items[self.accelerator.process_index :: self.processes]

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        if self.processes == 1:
            return value
        return self.accelerator.reduce(value.to(self.device), reduction="mean")

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters if self.processes > 1 else []:
            if parameter.grad is not None:
                parameter.grad = self.mean(parameter.grad)


def _auto_dtype(device: str) -> str:
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"
