"""Device, precision and processes of torch's computations."""

import atexit
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from comp.errors import CompExportError
from comp.utils.device import torch_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Compute:
    """Device, precision and, under ``accelerate launch``, the other processes.

    Weights stay fp32 while they are trained; ``dtype`` is that of the matrix products.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 if the processor
            computes it fast, otherwise float32 on a CPU and float16 on a GPU.

    Raises:
        CompExportError: for float16 on a CPU, or ``cuda`` without a GPU.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto") -> None:
        place = torch_device(device)  # type: ignore[arg-type]
        name = _auto_dtype(place) if dtype == "auto" else dtype
        if name == "float16" and place == "cpu":
            raise CompExportError("--dtype float16 needs a GPU: use bfloat16 or float32 on a CPU")
        self.dtype = DTYPES[name]
        _forget_other_device(place)
        # We set the precision ourselves: accelerate allows only one per process.
        self.accelerator = Accelerator(cpu=place == "cpu", mixed_precision="no")
        if self.processes > 1:  # the group's threads abort a process that ends before them
            atexit.register(PartialState().destroy_process_group)
        self.device = self.accelerator.device
        self.seconds: dict[str, float] = {}
        self._timing = False

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the wall seconds of the block to ``seconds[what]``; of nested blocks only the outer counts."""
        if self._timing:
            yield
            return
        self._timing = True
        began = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":  # kernels are asynchronous: wait for those of this block
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
        """Return this process's share of a batch's items; the first processes may get one more."""
        return items[self.accelerator.process_index :: self.processes]

    def shard_size(self, count: int) -> int:
        """Return the number of ``count`` items that ``shard`` gives this process."""
        return len(range(self.accelerator.process_index, count, self.processes))

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over processes; all must call this in the same order."""
        if self.processes == 1:
            return value
        return self.accelerator.reduce(value.to(self.device), reduction="sum")

    def mean(self, value: Tensor, count: Tensor | float) -> Tensor:
        """Return the mean over processes; all must call this in the same order.

        Args:
            value: this process's mean.
            count: number of items in this mean, one number or one for each element. Elements with 0 items
                are left out; they may be NaN.
        """
        if self.processes == 1:
            return value
        exact = value.to(self.device, torch.float64)
        count = torch.as_tensor(count, dtype=torch.float64, device=self.device)
        share = count / self.sum(count).clamp(min=1)
        return self.sum(torch.where(share > 0, exact * share, 0.0)).to(value.dtype)

    def longest(self, count: int) -> int:
        """Return the largest of the processes' numbers; all must call this in the same order."""
        if self.processes == 1:
            return count
        counts = self.accelerator.gather(torch.tensor([count], device=self.device))
        return int(counts.max())

    def shares(self, counts: Sequence[float]) -> list[float]:
        """Return this process's share of each count over all processes, as floats from 0 to 1.

        A mean over all is the sum over processes of share times mean. Processes with fewer counts than
        others have 0 of the rest. All must call this in the same order.
        """
        if self.processes == 1:
            return [1.0] * len(counts)
        own = torch.zeros(self.longest(len(counts)), dtype=torch.float64)
        own[: len(counts)] = torch.tensor(list(counts), dtype=torch.float64)
        total = self.sum(own).cpu()
        return torch.where(total > 0, own / total, 0.0)[: len(counts)].tolist()

    def average_gradients(self, parameters: list[nn.Parameter], share: float) -> None:
        """Replace gradients by their mean over processes.

        A gradient that is missing on some processes counts as zero there: a reduce that only some processes
        call would wait for ever. A gradient that is missing everywhere stays missing.

        Args:
            parameters: the same parameters in every process.
            share: this process's share of the terms that the loss is a mean of (``shares``).
        """
        if self.processes == 1:
            return
        reached = torch.tensor([parameter.grad is not None for parameter in parameters])
        anywhere = self.sum(reached.float()) > 0
        for parameter, somewhere in zip(parameters, anywhere.tolist(), strict=True):
            if somewhere:
                own = parameter.grad
                # Gradients of a mean of no terms are NaN.
                part = torch.zeros_like(parameter) if own is None or share == 0 else own * share
                parameter.grad = self.sum(part)


def _forget_other_device(place: str) -> None:
    """Let a process that computed on one device compute on another: accelerate keeps the first one."""
    state = PartialState._shared_state  # empty before the first use
    if state and state["device"].type != place and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)


def _auto_dtype(device: str) -> str:
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"
