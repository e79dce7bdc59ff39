"""Native TensorRT: engines on the GPU, one slot for each request that runs."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.engines.gpu import gpu_capability, why_no_gpu
from export.engines.manifest import Engines, load_engines
from export.engines.module import TensorRT, find_tensorrt
from serve.backends.base import BackendName, Prefill, RequestSize
from serve.backends.cuda import Cuda
from serve.backends.trt_engine import LoadedEngine, captures_graphs
from serve.backends.trt_slot import Slot, SlotState


class TensorRTBackend:
    """The engines of one model (see ``Backend``).

    Weights are on the GPU once; every request that runs at the same time has a slot with caches and
    contexts of its own, which the next request takes over.
    """

    name: BackendName = "tensorrt"
    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, engines: Engines, tensorrt: TensorRT) -> None:
        """Use ``load``."""
        self.manifest = engines.manifest.as_artifact()
        self.tokenizer = engines.tokenizer
        self.provider = f"{tensorrt.name} {tensorrt.version}"
        self._engines = engines.manifest
        self._cuda = Cuda()
        self._log = tensorrt.module.Logger(tensorrt.module.Logger.ERROR)
        self._runtime = tensorrt.module.Runtime(self._log)
        self._loaded = {name: self._load(engines, tensorrt, name) for name in self._engines.engines}
        self._own_graphs = not captures_graphs(tensorrt)
        self._free: list[Slot] = []
        self._lock = Lock()

    @classmethod
    def load(cls, directory: Path, check_hashes: bool = True) -> "TensorRTBackend":
        """Load an engine directory.

        Raises:
            CompExportError: a damaged directory; no GPU, another GPU or another TensorRT than the
                engines were built for; the GPU's memory is used up.
        """
        engines = load_engines(directory, check_hashes)
        capability = gpu_capability()
        if capability is None:
            raise CompExportError(
                f"{directory} runs on an NVIDIA GPU, and {why_no_gpu()}; use --backend onnxruntime"
            )
        tensorrt = find_tensorrt(engines.manifest.module)
        engines.manifest.check_runs(tensorrt.name, tensorrt.version, capability)
        return cls(engines, tensorrt)

    def _load(self, engines: Engines, tensorrt: TensorRT, name: str) -> LoadedEngine:
        loaded = LoadedEngine(tensorrt, engines.file(name), self._runtime)
        if self._engines.weights == "streamed":
            loaded.stream_weights()
        elif self._engines.weights == "stripped":
            loaded.refit(engines.artifact / self._engines.engines[name].graph, self._log)
        return loaded

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """Refuse what the engines are too small for, and a factor on the keep ratios."""
        if keep_factor != 1:
            raise CompExportError(
                f"keep_factor {keep_factor}: engines have their keep ratios built in; leave it at "
                "1, or use --backend onnxruntime"
            )
        limits = self._engines.limits
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
            return slot.prefill(pixels, ids, vision, text)
        except BaseException:
            self._give_back(slot)
            raise

    def step(self, tokens: Sequence[int], state: SlotState) -> tuple[NDArray[Any], SlotState]:
        """See ``Backend.step``."""
        return state.slot.step(tokens, state)

    def release(self, state: SlotState) -> None:
        """See ``Backend.release``."""
        self._give_back(state.slot)

    def _take(self) -> Slot:
        with self._lock:
            if self._free:
                return self._free.pop()
        return Slot(self._engines, self._loaded, self._cuda, self._own_graphs)

    def _give_back(self, slot: Slot) -> None:
        with self._lock:
            if slot not in self._free:
                self._free.append(slot)
