"""The graphs of a CLIP's or a BLIP's artifact, in ONNX Runtime or in OpenVINO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from export.artifact.encoder_manifest import EncoderArtifact, EncoderManifest
from export.onnxruntime.named_graphs import NamedGraphs
from serve.backends.base import BackendName, RequestSize, Runtime


class Graphs(NamedGraphs, Protocol):
    """The graphs of one model, and what is known of them; runs may come from several threads.

    Attributes:
        name, device, provider, manifest, tokenizer: as of ``serve.backends.base.Backend``.
    """

    name: BackendName
    device: Literal["cpu", "cuda"]
    provider: str
    manifest: EncoderManifest
    tokenizer: Path

    def check(self, size: RequestSize) -> None:
        """Refuse a request that what runs the graphs is too small for.

        Raises:
            CompExportError: names the limit.
        """
        ...


class EncoderGraphs:
    """Every graph of an artifact by name; runs may come from several threads."""

    def __init__(self, artifact: EncoderArtifact, runtime: Runtime) -> None:
        """The artifact and what loads its graphs: see ``open_artifact``."""
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
        """Any size will do."""

    def keep(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Every output of a graph by its name, left on the device for later runs."""
        found = self.graphs[graph]
        _, values = found.run(feeds, kept=found.outputs)
        return dict(zip(found.outputs, values, strict=True))

    def step(
        self, graph: str, feeds: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The logits of a decoder, and its other outputs by name, left on the device."""
        found = self.graphs[graph]
        rest = [name for name in found.outputs if name != "logits"]
        (logits,), values = found.run(feeds, ["logits"], rest)
        return logits, dict(zip(rest, values, strict=True))

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output of a graph by its name."""
        found = self.graphs[graph]
        arrays, _ = found.run(feeds, found.outputs)
        return dict(zip(found.outputs, arrays, strict=True))
