"""A pool of reused GPU buffers for tensors that stay on the GPU."""

import weakref
from collections import defaultdict, deque
from dataclasses import dataclass

from export.tensorrt.run.cuda import Buffer, Cuda


class BufferPool:
    """Buffers by size; a buffer returns to the pool when its tensor is garbage-collected.

    Taking and returning are single ``deque`` operations, so a tensor may be collected in any thread, even
    while another is taken.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: defaultdict[int, deque[Buffer]] = defaultdict(deque)

    def take(self, size: int) -> "Memory":
        """Take a buffer of at least ``size`` bytes.

        Raises:
            CompExportError: the GPU is out of memory.
        """
        free = self._free[size]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = self._cuda.allocate(size)
        memory = Memory(buffer.address)
        weakref.finalize(memory, free.append, buffer)
        return memory


class Memory:
    """A buffer of the pool, for the lifetime of this object."""

    def __init__(self, address: int) -> None:
        self.address = address


@dataclass(frozen=True)
class DeviceTensor:
    """An output that stays on the GPU; no work on it is pending."""

    memory: Memory
    shape: tuple[int, ...]

    @property
    def address(self) -> int:
        return self.memory.address
