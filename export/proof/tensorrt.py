"""Engines as the last variant of ``verify``."""

from collections.abc import Callable
from typing import Any

from export.artifact.encoder_manifest import EncoderManifest
from export.onnxruntime.named_graphs import NamedGraphs
from export.proof.compare import Answered, Runner
from export.proof.interface import RuntimeVariant, Skipped
from export.tensorrt.gpu import gpu_capability, why_no_gpu
from export.tensorrt.manifest import Engines
from export.tensorrt.run.runtime import EngineRuntime

Asking = Callable[[EngineRuntime], Runner]  # makes a family's runner of engines


class EngineVariant:
    """Engines on a GPU (see ``export.proof.compare.Runner``); ``layers`` lists each engine's layers."""

    def __init__(self, runtime: EngineRuntime, asking: Asking) -> None:
        self.layers = runtime.layers()
        self._runner = asking(runtime)
        self._runtime = runtime

    def ask(self, question: Any, max_new_tokens: int) -> Answered:
        """Run the family's runner."""
        return self._runner.ask(question, max_new_tokens)


def engine_variant(engines: Engines, asking: Asking) -> RuntimeVariant | Skipped:
    """The engines on this machine's GPU, or why they cannot run."""
    manifest = engines.manifest
    name = f"TensorRT ({engines.path.name})"
    if gpu_capability() is None:
        return Skipped(name, f"it needs an NVIDIA GPU, and {why_no_gpu()}")
    return RuntimeVariant(
        name,
        engines.path,
        manifest.artifact.dense,
        manifest.artifact.precision,
        lambda: EngineVariant(EngineRuntime.load(engines.path, check_hashes=False), asking),
    )


def asking_graphs(runner: Callable[[EncoderManifest, NamedGraphs], Runner]) -> Asking:
    """Run engines like the graphs of a CLIP or a BLIP."""

    def asking(runtime: EngineRuntime) -> Runner:
        return runner(runtime.engines.manifest.as_artifact(EncoderManifest), runtime.runner())

    return asking
