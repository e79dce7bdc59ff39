"""Tensors that stay on the GPU, in buffers that are used again."""

import weakref
from collections import defaultdict, deque
from dataclasses import dataclass

from export.tensorrt.run.cuda import Buffer, Cuda


class BufferPool:
    """Buffers by their size; one that is taken comes back when nobody holds its tensor any more.

    Taking and giving are single operations of a ``deque``, so that a tensor may end in any thread, also
    while another is taken.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: defaultdict[int, deque[Buffer]] = defaultdict(deque)

    def take(self, size: int) -> "Memory":
        """At least ``size`` bytes.

        Raises:
            CompExportError: the GPU's memory is used up.
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
    """A buffer of the pool, for as long as this object lives."""

    def __init__(self, address: int) -> None:
        self.address = address


@dataclass(frozen=True)
class DeviceTensor:
    """What a run left on the GPU; no work on it is under way."""

    memory: Memory
    shape: tuple[int, ...]

    @property
    def address(self) -> int:
        return self.memory.address
