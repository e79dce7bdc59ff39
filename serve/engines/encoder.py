"""What the engines of all tasks of CLIP and BLIP have in common."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageSource
from comp.plan import Part, Place
from comp.utils.machine import usable_cores
from export.artifact.encoder_manifest import EncoderManifest
from serve.backends.base import BackendName, RequestSize
from serve.engines.encoder_graphs import Graphs
from serve.engines.encoder_texts import TextEncoder
from serve.engines.preprocess import preprocess

KEPT = "kept."  # outputs of graphs: places of the tokens that stayed


class EncoderEngine:
    """One artifact; holds no state between requests, which may come from several threads."""

    def __init__(self, graphs: Graphs, threads: int | None = None) -> None:
        """Use ``serve.loading.load_engine``."""
        self.graphs = graphs
        self.threads = threads or usable_cores()
        manifest = graphs.manifest
        self.texts = TextEncoder(
            graphs.tokenizer, manifest.text_processing, manifest.text.max_position_embeddings
        )

    @property
    def manifest(self) -> EncoderManifest:
        """Of the ONNX artifact that runs, or that the engines were built from."""
        return self.graphs.manifest

    @property
    def backend(self) -> BackendName:
        return self.graphs.name

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return self.graphs.device

    @property
    def provider(self) -> str:
        """ONNX Runtime's execution provider, or the version of OpenVINO or TensorRT."""
        return self.graphs.provider

    def encode(self, text: str, what: str) -> NDArray[np.int64]:
        """Token ids ``[L]`` of a text with its frame.

        Raises:
            CompExportError: an empty text, or one that is too long.
        """
        ids = self.texts.encode(text, what)
        self.graphs.check(RequestSize(batch=1, images=0, text_tokens=ids.size, new_tokens=0))
        return ids

    def pixels(self, images: Sequence[ImageSource]) -> NDArray[np.float32]:
        """``pixel_values [I, 3, S, S]``."""
        return preprocess(images, self.manifest.image_processor)


def kept_of(
    part: Part, batches: Sequence[dict[str, NDArray[Any]]]
) -> dict[Place, list[NDArray[np.int64]]]:
    """Of each row of these runs of one graph, the tokens that stayed at each place of a part."""
    names = [name for name in batches[0] if name.startswith(KEPT)]
    return {
        (part, int(name.removeprefix(KEPT))): [row for batch in batches for row in batch[name]]
        for name in names
    }


def ms_since(start: float) -> float:
    """Milliseconds since ``perf_counter`` said ``start``."""
    return (perf_counter() - start) * 1000
