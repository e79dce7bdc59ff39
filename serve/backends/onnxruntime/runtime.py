"""ONNX Runtime as the runtime of an artifact's graphs, on a CPU or a GPU."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from comp.errors import CompExportError
from export.artifact.manifest import Manifest, computed_in
from serve.backends.base import BackendName
from serve.backends.onnxruntime.kernel_cache import cache_directory
from serve.backends.onnxruntime.providers import Provider, SessionMaker, device_of
from serve.backends.onnxruntime.session import OrtBuffers, OrtGraph, OrtSteps
from serve.backends.onnxruntime.vnni_check import multiplies_exactly

_PLAIN: dict[Provider, Provider] = {"tensorrt": "cuda", "tensorrt-rtx": "cpu"}


@dataclass(frozen=True)
class OnnxRuntime:
    """Loads graphs into ONNX Runtime (see ``Runtime``)."""

    sessions: SessionMaker
    in_place: bool
    name: BackendName = "onnxruntime"

    @classmethod
    def of(
        cls, manifest: Manifest, directory: Path, provider: Provider, threads: int | None
    ) -> "OnnxRuntime":
        """Create it for an artifact; TensorRT's providers cache compiled kernels.

        Raises:
            CompExportError: the provider does not support this flavour or precision.
        """
        if "tensorrt" in provider and manifest.flavour != "standard":
            raise CompExportError(
                f"provider {provider}: {directory} is of the {manifest.flavour} flavour, TensorRT takes "
                "the standard one: use --flavour standard (`comp-export onnx --flavour standard`)"
            )
        if provider == "cpu" and manifest.precision == "bfloat16":
            raise CompExportError(
                f"{directory} is bfloat16, which ONNX Runtime does not compute on a CPU: use "
                "--precision float16 or float32, or --backend openvino"
            )
        if computed_in(manifest.precision) != manifest.precision:
            _check_integers(manifest, directory, provider)
        cache = cache_directory(provider, manifest) if "tensorrt" in provider else Path()
        sessions = SessionMaker(provider, manifest, cache, threads)
        return cls(sessions, in_place=manifest.flavour == "onnxruntime")

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return device_of(self.sessions.provider)

    @property
    def label(self) -> str:
        return self.sessions.provider

    @property
    def buffers(self) -> OrtBuffers | None:
        """See ``Runtime``: only GroupQueryAttention, of the onnxruntime flavour, writes in place."""
        return OrtBuffers() if self.in_place and self.device == "cpu" else None

    def graph(self, path: Path) -> OrtGraph:
        """See ``Runtime``."""
        return OrtGraph(self.sessions.session(path), self.device, path)

    def decoder(self, path: Path) -> tuple[OrtGraph, OrtSteps | None]:
        """See ``Runtime``: caches that are written in place are bound once."""
        graph = self.graph(path)
        return graph, OrtSteps(graph) if self.buffers else None

    def table(self, path: Path) -> OrtGraph:
        """See ``Runtime``; the graph has nothing to compile."""
        provider = self.sessions.provider
        plain = _PLAIN.get(provider, provider)
        sessions = replace(self.sessions, provider=plain, threads=1)
        return replace(self, sessions=sessions).graph(path)


def _check_integers(manifest: Manifest, directory: Path, provider: Provider) -> None:
    """Refuse integer weights on hardware where they would be slow or wrong."""
    if provider != "cpu":
        raise CompExportError(
            f"{directory} is {manifest.precision}, which is for CPUs: use --provider cpu, or --precision "
            "float16 on a GPU"
        )
    if manifest.flavour == "onnxruntime" and not multiplies_exactly():
        raise CompExportError(
            f"{directory} is {manifest.precision}, and this CPU adds products of bytes in 16 bits (it has no "
            "VNNI), so that answers would be wrong: use --backend openvino with the standard flavour, or "
            "--precision float32"
        )
