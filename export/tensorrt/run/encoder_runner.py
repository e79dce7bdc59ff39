"""Run the engines of a CLIP or a BLIP on the GPU (see ``export.onnxruntime.named_graphs.NamedGraphs``)."""

from collections.abc import Collection, Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.tensorrt.manifest import EngineManifest
from export.tensorrt.run.buffer_pool import BufferPool, DeviceTensor
from export.tensorrt.run.cuda import Cuda
from export.tensorrt.run.encoder_slot import EncoderSlot, Feed
from export.tensorrt.run.execution import LoadedEngine

LOGITS = "logits"


class EncoderRunner:
    """Weights are on the GPU once; each of several concurrent runs has its own slot.

    Tensors that a request keeps on the GPU are not in the slot, so its next run may use another slot.
    Their memory is reused as soon as the request releases them.
    """

    def __init__(
        self, manifest: EngineManifest, engines: Mapping[str, LoadedEngine], cuda: Cuda
    ) -> None:
        """Use ``EngineRuntime.runner``."""
        self._entries = manifest.engines
        self._engines = engines
        self._cuda = cuda
        self._pool = BufferPool(cuda)
        self._free: list[EncoderSlot] = []
        self._lock = Lock()

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a graph and return every output by name.

        Rows are independent: a batch larger than the engine takes is run in parts.
        """
        most = self._rows(graph)
        rows = len(next(iter(feeds.values())))
        parts = [
            self._run(graph, {n: each[first : first + most] for n, each in feeds.items()}, None)[0]
            for first in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def keep(self, graph: str, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        """Run a graph and return every output by name, left on the GPU."""
        return self._run(graph, feeds, ())[1]

    def step(
        self, graph: str, feeds: Mapping[str, Feed]
    ) -> tuple[NDArray[np.float32], dict[str, DeviceTensor]]:
        """Run a decoder and return its logits, and its other outputs by name, left on the GPU."""
        fetched, rest = self._run(graph, feeds, (LOGITS,))
        return fetched[LOGITS], rest

    def _rows(self, graph: str) -> int:
        """The largest number of images or texts that an engine takes."""
        (profile,) = self._entries[graph].profiles
        return min(high[0] for _, _, high in profile.shapes.values())

    def _run(
        self, graph: str, feeds: Mapping[str, Feed], fetched: Collection[str] | None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, DeviceTensor]]:
        slot = self._take()
        try:
            return slot.run(graph, feeds, fetched)
        finally:
            with self._lock:
                self._free.append(slot)

    def _take(self) -> EncoderSlot:
        with self._lock:
            if self._free:
                return self._free.pop()
        return EncoderSlot(self._entries, self._engines, self._cuda, self._pool)
