"""The graphs of a CLIP or a BLIP by name, in any runtime."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.artifact.encoder_manifest import EncoderArtifact
from export.onnxruntime.graph import LoadGraph, OrtGraph


class NamedGraphs(Protocol):
    """Runs the graphs of one model.

    Values that ``keep`` and ``step`` leave on the device are fed to later runs unchanged.
    """

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a graph and return every output by name."""
        ...

    def keep(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph and return every output by name, left on the device."""
        ...

    def step(
        self, graph: str, feeds: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Run a decoder and return its logits, and its other outputs by name, left on the device."""
        ...


class NumpyGraphs:
    """An artifact in plain ONNX Runtime, or in another loader's runtime (see ``NamedGraphs``)."""

    def __init__(self, artifact: EncoderArtifact, load: LoadGraph = OrtGraph) -> None:
        self._graphs = {
            entry.name.removesuffix(".onnx"): load(artifact.path / entry.name)
            for entry in artifact.manifest.files
            if entry.name.endswith(".onnx")
        }

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._graphs[graph].run(dict(feeds))

    def keep(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return self.run(graph, feeds)

    def step(
        self, graph: str, feeds: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        outputs = self.run(graph, feeds)
        return outputs.pop("logits"), outputs
