"""Native TensorRT: engines on the GPU, with one slot for each concurrent request."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.tensorrt.run.llava_slot import RequestBuffers, SlotState
from export.tensorrt.run.runtime import EngineRuntime
from serve.backends.base import BackendName, Prefill, RequestSize


class TensorRTBackend:
    """The engines of one model (see ``Backend``).

    Weights are on the GPU once; each concurrent request has a slot with its own caches and contexts,
    which later requests reuse.
    """

    name: BackendName = "tensorrt"
    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, runtime: EngineRuntime) -> None:
        """Use ``load``."""
        self.manifest = runtime.engines.manifest.llava
        self.tokenizer = runtime.engines.tokenizer
        self.provider = runtime.label
        self._runtime = runtime
        self._free: list[RequestBuffers] = []
        self._lock = Lock()

    @classmethod
    def load(cls, directory: Path, check_hashes: bool = True) -> "TensorRTBackend":
        """Load an engine directory; errors as for ``EngineRuntime.load``."""
        return cls(EngineRuntime.load(directory, check_hashes))

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """Refuse requests that exceed the limits, and a factor on the keep ratios."""
        if keep_factor != 1:
            raise CompExportError(
                f"keep_factor {keep_factor}: engines have their keep ratios built in; leave it at "
                "1, or use --backend onnxruntime"
            )
        limits = self._runtime.engines.manifest.limits
        limits.check(size.batch, size.images, size.text_tokens, size.new_tokens)

    def prefill(
        self,
        pixels: NDArray[np.float32] | None,
        ids: NDArray[np.int64],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
        keep_factor: float,
    ) -> Prefill:
        """See ``Backend.prefill``; ``check`` has refused a ``keep_factor`` other than 1."""
        del keep_factor
        slot = self._take()
        try:
            prefilled = slot.prefill(pixels, ids, vision, text)
        except BaseException:
            self._give_back(slot)
            raise
        return Prefill(
            prefilled.logits,
            prefilled.kept,
            prefilled.state,
            prefilled.vision_ms,
            prefilled.selected,
        )

    def step(self, tokens: Sequence[int], state: SlotState) -> tuple[NDArray[Any], SlotState]:
        """See ``Backend.step``."""
        return state.slot.step(tokens, state)

    def release(self, state: SlotState) -> None:
        """See ``Backend.release``."""
        self._give_back(state.slot)

    def keep_images(self, max_bytes: int) -> None:
        """See ``Backend.keep_images``: a slot's engines run images with their prompt."""

    def keep_prefixes(self, max_bytes: int) -> None:
        """See ``Backend.keep_prefixes``: a slot's caches begin with its prompt."""

    def rows(self, rows: int, places: int) -> None:
        """See ``Backend.rows``: a slot holds one request."""

    def _take(self) -> RequestBuffers:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._runtime.slot()

    def _give_back(self, slot: RequestBuffers) -> None:
        with self._lock:
            if slot not in self._free:
                self._free.append(slot)
