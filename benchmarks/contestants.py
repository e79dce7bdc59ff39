"""The contestants: each loads one of the two models and answers a question about an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from comp.errors import CompExportError
from export.artifact.manifest import Flavour, Precision
from rivals.base import Answered, Loaded, Stage
from run_files import RunFiles, Which

if TYPE_CHECKING:
    from rivals.torch_models import TorchModels
    from serve.backends.base import BackendName


def onnx_runtime(stage: Stage, which: Which) -> Loaded:
    """ONNX Runtime on the ``onnxruntime`` flavour, with CUDA or on the CPU."""
    import onnxruntime

    directory = stage.files.artifact(which, "onnxruntime")
    notes = {"onnxruntime": onnxruntime.__version__, "bytes": _bytes_of(directory)}
    loaded = _engine(stage, directory, notes)
    stage.files.loaded(directory)
    return loaded


@dataclass(frozen=True)
class OnCpu:
    """An artifact of one precision in one of the project's CPU runtimes."""

    backend: "BackendName"
    precision: Precision

    @property
    def flavour(self) -> Flavour:
        return "onnxruntime" if self.backend == "onnxruntime" else "standard"

    def prepare(self, files: RunFiles, which: Which) -> Path:
        """Export it unless it exists."""
        return files.artifact(which, self.flavour, self.precision)

    def load(self, stage: Stage, which: Which) -> Loaded:
        if stage.settings.device != "cpu":
            raise CompExportError(f"{self.backend} in {self.precision} is for CPUs: --device cpu")
        directory = self.prepare(stage.files, which)
        loaded = _engine(stage, directory, {"bytes": _bytes_of(directory)}, self.backend)
        stage.files.loaded(directory)
        return loaded


def tensorrt(stage: Stage, which: Which) -> Loaded:
    """Native TensorRT engines."""
    from export.tensorrt.manifest import load_engines

    if stage.settings.device != "cuda":
        raise CompExportError("native TensorRT needs an NVIDIA GPU")
    directory = stage.files.engines(which)
    engines = load_engines(directory, check_hashes=False)
    blocks = engines.manifest.engines["decoder"].blocks
    notes = {
        "module": f"{engines.manifest.module} {engines.manifest.module_version}",
        "weights": engines.manifest.weights,
        "fused_attention": f"{sum(b.attention == 'fused' for b in blocks)} of {len(blocks)}",
    }
    loaded = _engine(stage, directory, notes)
    stage.files.loaded(directory, *([engines.artifact] if notes["weights"] == "stripped" else []))
    return loaded


def torch_eager(stage: Stage, which: Which) -> Loaded:
    """The LLaVA of transformers, or the project's slim one, run eagerly."""
    return _torch_models(stage).eager(which)


def torch_bfloat16(stage: Stage, which: Which) -> Loaded:
    """As ``torch_eager``, in bfloat16; it loads its own models."""
    from rivals.torch_models import TorchModels

    return TorchModels(stage.files, stage.settings, "bfloat16").eager(which)


def torch_compile(stage: Stage, which: Which) -> Loaded:
    """The LLaVA of transformers with torch.compile and a static cache."""
    if which == "compressed":
        raise CompExportError(
            "not measured: a slim model's caches have another length after each drop, which "
            "transformers' static cache does not hold, and its drops are not traced as one graph"
        )
    return _torch_models(stage).compiled()


def genai(precision: str) -> Callable[[Stage, Which], Loaded]:
    """OpenVINO GenAI in a precision; see ``benchmarks/rivals/genai.py``."""

    def load(stage: Stage, which: Which) -> Loaded:
        from rivals.genai import load_genai

        return load_genai(stage, which, precision)

    return load


def llamacpp(kind: str) -> Callable[[Stage, Which], Loaded]:
    """llama.cpp with a kind of weights; see ``benchmarks/rivals/llamacpp.py``."""

    def load(stage: Stage, which: Which) -> Loaded:
        from rivals.llamacpp import load_llamacpp

        return load_llamacpp(stage, which, kind)

    return load


def ortgenai(kind: str) -> Callable[[Stage, Which], Loaded]:
    """ONNX Runtime GenAI's graph with a kind of weights; see ``benchmarks/rivals/ortgenai.py``."""

    def load(stage: Stage, which: Which) -> Loaded:
        from rivals.ortgenai import load_ortgenai

        return load_ortgenai(stage, which, kind)

    return load


def _gguf(files: RunFiles, which: Which, kind: str) -> None:
    from rivals.llamacpp import gguf_files

    if which == "dense":
        gguf_files(files, kind)


def _builder(files: RunFiles, which: Which, kind: str) -> None:
    from rivals.ortgenai import ortgenai_files

    if which == "dense":
        ortgenai_files(files, kind)


LLAMACPP = {f"llamacpp-{kind.lower()}": kind for kind in ("Q8_0", "Q4_0")}
GENAI = {f"genai-{precision}": precision for precision in ("fp16", "int8", "int4")}
ORTGENAI = {f"ortgenai-{kind}": kind for kind in ("fp32", "int8", "int4")}
ON_CPUS = {
    "ort-int8": OnCpu("onnxruntime", "int8"),
    "ort-int4": OnCpu("onnxruntime", "int4"),
    "openvino": OnCpu("openvino", "float32"),
    "openvino-bf16": OnCpu("openvino", "bfloat16"),
    "openvino-int8": OnCpu("openvino", "int8"),
    "openvino-int4": OnCpu("openvino", "int4"),
    "openvino-bf16-int8": OnCpu("openvino-bfloat16", "int8"),
    "openvino-bf16-int4": OnCpu("openvino-bfloat16", "int4"),
}
# Makes the files of a contestant without loading them.
PREPARE: dict[str, Callable[[RunFiles, Which], object]] = {
    "ort": lambda files, which: files.artifact(which, "onnxruntime"),
    "tensorrt": lambda files, which: files.engines(which),
    "torch": lambda files, which: files.checkpoint(which),
    "torch-bf16": lambda files, which: files.checkpoint(which),
    "torch-compile": lambda files, _which: files.checkpoint("dense"),
    **{name: on_cpu.prepare for name, on_cpu in ON_CPUS.items()},
    **{name: lambda files, which: None for name in GENAI},
    **{name: partial(_gguf, kind=kind) for name, kind in LLAMACPP.items()},
    **{name: partial(_builder, kind=kind) for name, kind in ORTGENAI.items()},
}
CONTESTANTS: dict[str, Callable[[Stage, Which], Loaded]] = {
    "ort": onnx_runtime,
    "tensorrt": tensorrt,
    "torch": torch_eager,
    "torch-bf16": torch_bfloat16,
    "torch-compile": torch_compile,
    **{name: on_cpu.load for name, on_cpu in ON_CPUS.items()},
    **{name: genai(precision) for name, precision in GENAI.items()},
    **{name: llamacpp(kind) for name, kind in LLAMACPP.items()},
    **{name: ortgenai(kind) for name, kind in ORTGENAI.items()},
}


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _engine(
    stage: Stage, directory: Path, notes: dict[str, Any], backend: "BackendName | None" = None
) -> Loaded:
    """An engine of ``serve``, with its own times."""
    from serve.engines.llava import Engine
    from serve.generation.options import GenerationOptions

    settings = stage.settings
    engine = Engine.load(
        directory,
        device=settings.device,
        threads=settings.threads,
        check_hashes=False,
        backend=backend,
    )  # just written: no need to hash gigabytes again
    options = GenerationOptions(max_new_tokens=settings.new_tokens, ignore_eos=True)

    def answer(image: Image.Image) -> Answered:
        done = engine.generate([image], settings.prompt, options)
        times = done.timings
        return Answered(
            times.prepare_ms, times.ttft_ms, times.decode_ms, done.prompt_tokens, done.token_ids
        )

    return Loaded(answer, notes | {"provider": engine.provider})


def _torch_models(stage: Stage) -> "TorchModels":
    """The torch models of the stage, loaded once for all contestants that use them."""
    from rivals.torch_models import TorchModels

    if stage.models is None:
        stage.models = TorchModels(stage.files, stage.settings)
    models: TorchModels = stage.models
    return models
