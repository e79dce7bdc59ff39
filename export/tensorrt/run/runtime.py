"""Load the engines of a directory on the GPU."""

from pathlib import Path

from comp.errors import CompExportError
from export.tensorrt.attention_report import engine_kernels
from export.tensorrt.gpu import gpu_capability, why_no_gpu
from export.tensorrt.library import TensorRT, find_tensorrt
from export.tensorrt.manifest import Engines, load_engines
from export.tensorrt.run.cuda import Cuda
from export.tensorrt.run.encoder_runner import EncoderRunner
from export.tensorrt.run.execution import LoadedEngine, captures_graphs
from export.tensorrt.run.llava_slot import RequestBuffers


class EngineRuntime:
    """Engines with weights on the GPU once; slots and runners have their own buffers and contexts."""

    def __init__(self, engines: Engines, tensorrt: TensorRT) -> None:
        """Use ``load``."""
        self.engines = engines
        self.label = f"{tensorrt.name} {tensorrt.version}"
        self._tensorrt = tensorrt
        self._cuda = Cuda()
        self._log = tensorrt.module.Logger(tensorrt.module.Logger.ERROR)
        self._runtime = tensorrt.module.Runtime(self._log)
        self._loaded = {name: self._load(name) for name in engines.manifest.engines}

    @classmethod
    def load(cls, directory: Path, check_hashes: bool = True) -> "EngineRuntime":
        """Load an engine directory.

        Raises:
            CompExportError: the directory is damaged; there is no GPU, or another GPU or TensorRT than the
                engines were built for; the GPU is out of memory.
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

    def slot(self) -> RequestBuffers:
        """Allocate the buffers of one LLaVA request.

        Raises:
            CompExportError: the GPU is out of memory.
        """
        own_graphs = not captures_graphs(self._tensorrt)
        return RequestBuffers(self.engines.manifest, self._loaded, self._cuda, own_graphs)

    def runner(self) -> EncoderRunner:
        """A runner of a CLIP's or a BLIP's engines by name."""
        return EncoderRunner(self.engines.manifest, self._loaded, self._cuda)

    def layers(self) -> dict[str, tuple[str, ...]]:
        """Names of each engine's layers as TensorRT compiled them, fused kernels included."""
        return {
            name: engine_kernels(self._tensorrt, loaded.engine)
            for name, loaded in self._loaded.items()
        }

    def _load(self, name: str) -> LoadedEngine:
        manifest = self.engines.manifest
        loaded = LoadedEngine(self._tensorrt, self.engines.file(name), self._runtime)
        if manifest.weights == "streamed":
            loaded.stream_weights()
        elif manifest.weights == "stripped":
            loaded.refit(self.engines.artifact / manifest.engines[name].graph, self._log)
        return loaded
