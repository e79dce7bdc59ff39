"""The engines of a CLIP or a BLIP on the GPU (see ``export.onnxruntime.named_graphs.NamedGraphs``)."""

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
    """Weights are on the GPU once; every run that happens at the same time has a slot of its own.

    What a request goes on from are tensors on the GPU, not the slot: its next run may have another.
    Their memory serves again as soon as the request lets go of them.
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
        """Every output of a graph by its name.

        Rows do not meet in such a graph: more than an engine takes at a time are run in turn.
        """
        most = self._rows(graph)
        rows = len(next(iter(feeds.values())))
        parts = [
            self._run(graph, {n: each[first : first + most] for n, each in feeds.items()}, None)[0]
            for first in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def keep(self, graph: str, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        """Every output of a graph by its name, left on the GPU."""
        return self._run(graph, feeds, ())[1]

    def step(
        self, graph: str, feeds: Mapping[str, Feed]
    ) -> tuple[NDArray[np.float32], dict[str, DeviceTensor]]:
        """The logits of a decoder, and its other outputs by name, left on the GPU."""
        found, rest = self._run(graph, feeds, (LOGITS,))
        return found[LOGITS], rest

    def _rows(self, graph: str) -> int:
        """How many images or texts an engine takes at a time."""
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
