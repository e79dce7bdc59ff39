"""The graphs of a CLIP or BLIP artifact, in ONNX Runtime or in OpenVINO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from export.artifact.encoder_manifest import EncoderArtifact, EncoderManifest
from export.onnxruntime.named_graphs import NamedGraphs
from serve.backends.base import BackendName, RequestSize, Runtime


class Graphs(NamedGraphs, Protocol):
    """The graphs of one model with its manifest; runs may come from several threads.

    Attributes:
        name, device, provider, manifest, tokenizer: as in ``serve.backends.base.Backend``.
    """

    name: BackendName
    device: Literal["cpu", "cuda"]
    provider: str
    manifest: EncoderManifest
    tokenizer: Path

    def check(self, size: RequestSize) -> None:
        """Refuse a request that exceeds the limits of the graphs.

        Raises:
            CompExportError: names the limit.
        """
        ...


class EncoderGraphs:
    """Every graph of an artifact by name; runs may come from several threads."""

    def __init__(self, artifact: EncoderArtifact, runtime: Runtime) -> None:
        """Arguments as ``open_artifact`` returns them."""
        self.manifest = artifact.manifest
        self.tokenizer = artifact.tokenizer
        self.name: BackendName = runtime.name
        self.provider: str = runtime.label
        self.device: Literal["cpu", "cuda"] = runtime.device
        self.graphs = {
            path.stem: runtime.graph(path)
            for entry in self.manifest.files
            for path in [artifact.path / entry.name]
            if path.suffix == ".onnx"
        }

    def check(self, size: RequestSize) -> None:
        """Accept any size."""

    def keep(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph and return every output by name, left on the device for later runs."""
        loaded = self.graphs[graph]
        _, values = loaded.run(feeds, kept=loaded.outputs)
        return dict(zip(loaded.outputs, values, strict=True))

    def step(
        self, graph: str, feeds: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Run a decoder and return its logits, and its other outputs by name, left on the device."""
        loaded = self.graphs[graph]
        rest = [name for name in loaded.outputs if name != "logits"]
        (logits,), values = loaded.run(feeds, ["logits"], rest)
        return logits, dict(zip(rest, values, strict=True))

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a graph and return every output by name."""
        loaded = self.graphs[graph]
        arrays, _ = loaded.run(feeds, loaded.outputs)
        return dict(zip(loaded.outputs, arrays, strict=True))
