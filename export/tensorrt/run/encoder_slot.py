"""Run a CLIP's or a BLIP's engines on the GPU: a stream, contexts and input buffers for one run."""

from collections.abc import Collection, Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.tensorrt.manifest import REMEDY, EngineEntry
from export.tensorrt.run.buffer_pool import BufferPool, DeviceTensor
from export.tensorrt.run.cuda import Buffer, Cuda
from export.tensorrt.run.execution import Execution, LoadedEngine

Feed: TypeAlias = "NDArray[Any] | DeviceTensor"
Shape = tuple[int, ...]
Context = tuple[Execution, dict[str, int]]  # with the bytes of each output at the largest shapes


class EncoderSlot:
    """Runs one graph at a time; contexts and buffers are allocated when first needed and kept."""

    def __init__(
        self,
        entries: Mapping[str, EngineEntry],
        engines: Mapping[str, LoadedEngine],
        cuda: Cuda,
        pool: BufferPool,
    ) -> None:
        self._entries = entries
        self._engines = engines
        self._ports = {name: engine.ports() for name, engine in engines.items()}
        self._cuda = cuda
        self._pool = pool
        self._stream = cuda.stream()
        self._contexts: dict[tuple[str, int], Context] = {}
        self._inputs: dict[tuple[str, str], Buffer] = {}
        self._nothing = cuda.allocate(0)  # an address for a tensor without elements

    def run(
        self, engine: str, feeds: Mapping[str, Feed], fetched: Collection[str] | None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, DeviceTensor]]:
        """Run a graph and wait for it.

        Args:
            engine: its name.
            feeds: every input, an array or an output that an earlier run left on the GPU. An empty array
                may have any type.
            fetched: outputs to copy to the host; ``None`` copies all.

        Returns:
            The fetched outputs, and the others.

        Raises:
            CompExportError: shapes outside the engine's profiles; the GPU is out of memory.
        """
        shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        execution, room = self._context(engine, self._profile(engine, shapes))
        lent: list[object] = []  # memory in use until the stream is synchronised
        for name, value in feeds.items():
            if isinstance(value, DeviceTensor):
                address = value.address
            else:
                address = self._nothing.address
                if value.size:
                    lent.append(array := self._typed(engine, name, value))
                    address = self._input(engine, name)
                    self._cuda.upload(address, array, self._stream)
            execution.bind_input(name, address, shapes[name])
        outputs = {}
        for name, size in room.items():
            outputs[name] = DeviceTensor(self._pool.take(size), execution.output_shape(name))
            execution.bind_output(name, outputs[name].address)
        execution.enqueue()
        arrays = {}
        for name in room if fetched is None else fetched:
            tensor = outputs.pop(name)
            arrays[name] = np.empty(tensor.shape, self._ports[engine][name].dtype)
            if arrays[name].size:
                self._cuda.download(arrays[name], tensor.address, self._stream)
            lent.append(tensor)
        self._cuda.synchronize(self._stream)
        return arrays, outputs

    def _profile(self, engine: str, shapes: Mapping[str, Shape]) -> int:
        """Number of the first profile that takes these shapes."""
        for number, profile in enumerate(self._entries[engine].profiles):
            if all(_fits(shapes[name], *profile.shapes[name]) for name in profile.shapes):
                return number
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise CompExportError(
            f"{engine}: {given} are outside the engine's profiles: {REMEDY} and larger limits"
        )

    def _context(self, engine: str, number: int) -> Context:
        if (engine, number) not in self._contexts:
            execution = self._engines[engine].context(number, self._stream)
            largest = self._entries[engine].profiles[number].shapes
            for name, (_, _, high) in largest.items():
                execution.shape_input(name, high)
            room = {
                port.name: prod(execution.output_shape(port.name)) * port.itemsize
                for port in self._ports[engine].values()
                if not port.is_input
            }
            self._contexts[engine, number] = (execution, room)
        return self._contexts[engine, number]

    def _input(self, engine: str, name: str) -> int:
        """Address of an input's buffer, sized for the largest of all profiles."""
        if (engine, name) not in self._inputs:
            profiles = self._entries[engine].profiles
            count = max(prod(profile.shapes[name][2]) for profile in profiles)
            size = count * self._ports[engine][name].itemsize
            self._inputs[engine, name] = self._cuda.allocate(size)
        return self._inputs[engine, name].address

    def _typed(self, engine: str, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """The array, contiguous; its type must be the engine's."""
        dtype = self._ports[engine][name].dtype
        if value.dtype != dtype:
            wanted = "bfloat16" if dtype is None else np.dtype(dtype).name
            raise CompExportError(
                f"{engine} takes {name} as {wanted}, not as {value.dtype}: {REMEDY}"
            )
        return np.ascontiguousarray(value)


def _fits(shape: Shape, low: Shape, usual: Shape, high: Shape) -> bool:
    del usual
    return len(shape) == len(low) and all(
        least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
    )
