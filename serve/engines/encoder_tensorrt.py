"""The TensorRT engines of a CLIP or a BLIP, with the interface of its graphs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.artifact.encoder_manifest import EncoderManifest
from export.tensorrt.run.runtime import EngineRuntime
from serve.backends.base import BackendName, RequestSize


class EncoderEngines:
    """Every engine of a directory by name (see ``Graphs``); runs may come from several threads."""

    name: BackendName = "tensorrt"
    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, runtime: EngineRuntime) -> None:
        """Use ``load``."""
        self.manifest = runtime.engines.manifest.as_artifact(EncoderManifest)
        self.tokenizer = runtime.engines.tokenizer
        self.provider = runtime.label
        self._limits = runtime.engines.manifest.limits
        self._runtime = runtime
        self._runner = runtime.runner()

    @classmethod
    def load(cls, directory: Path, check_hashes: bool = True) -> "EncoderEngines":
        """Load an engine directory; errors as for ``EngineRuntime.load``."""
        return cls(EngineRuntime.load(directory, check_hashes))

    def check(self, size: RequestSize) -> None:
        """Refuse requests that exceed the limits of the engines."""
        self._limits.check(size.batch, size.images, size.text_tokens, size.new_tokens)

    def keep(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """See ``NamedGraphs``."""
        return dict(self._runner.keep(graph, feeds))

    def step(
        self, graph: str, feeds: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """See ``NamedGraphs``."""
        logits, rest = self._runner.step(graph, feeds)
        return logits, dict(rest)

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See ``NamedGraphs``."""
        return self._runner.run(graph, feeds)
