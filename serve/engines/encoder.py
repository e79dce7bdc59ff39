"""Base of the engines for all tasks of CLIP and BLIP."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageSource
from comp.errors import CompExportError
from comp.plan import Part, Place
from comp.utils.machine import usable_cores
from export.artifact.encoder_manifest import EncoderArtifact, EncoderManifest
from export.artifact.load import kind_of
from serve.backends.base import BackendName, ProviderChoice, RequestSize
from serve.backends.open import check_native, open_artifact
from serve.engines.encoder_graphs import EncoderGraphs, Graphs
from serve.engines.encoder_texts import TextEncoder
from serve.engines.preprocess import preprocess

E = TypeVar("E", bound="EncoderEngine")
KEPT = "kept."  # prefix of the outputs with kept indices


class EncoderEngine:
    """One artifact; holds no state between requests, so that threads may share it."""

    def __init__(self, graphs: Graphs, threads: int | None = None) -> None:
        """Use ``serve.loading.load_engine``."""
        self.graphs = graphs
        self.threads = threads or usable_cores()
        manifest = graphs.manifest
        self.texts = TextEncoder(
            graphs.tokenizer, manifest.text_processing, manifest.text.max_position_embeddings
        )

    @classmethod
    def load(
        cls: type[E],
        directory: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        check_hashes: bool = True,
        provider: ProviderChoice = "auto",
        backend: BackendName | None = None,
    ) -> E:
        """Load an artifact or its engines.

        Arguments and errors as for ``serve.engines.llava.Engine.load``.
        """
        if threads is not None and threads < 1:
            raise CompExportError(f"threads {threads}: choose 1 or more")
        if kind_of(directory) == "tensorrt":
            graphs = _native(directory, device, check_hashes, provider, backend or "tensorrt")
            return cls(graphs, threads)
        backend = backend or "onnxruntime"
        opened = open_artifact(
            directory, EncoderArtifact, device, threads, check_hashes, provider, backend
        )
        return cls(EncoderGraphs(*opened), threads)

    @property
    def manifest(self) -> EncoderManifest:
        """The manifest of the ONNX artifact that runs, or that the engines were built from."""
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
        """Token ids ``[L]`` of a text with its special tokens.

        Raises:
            CompExportError: the text is empty or too long.
        """
        ids = self.texts.encode(text, what)
        self.graphs.check(RequestSize(batch=1, images=0, text_tokens=ids.size, new_tokens=0))
        return ids

    def pixels(self, images: Sequence[ImageSource]) -> NDArray[np.float32]:
        """``pixel_values [I, 3, S, S]``."""
        return preprocess(images, self.manifest.image_processor)


def _native(
    directory: Path, device: str, check_hashes: bool, provider: str, backend: BackendName
) -> Graphs:
    """Load the engines of a directory. Only this function imports TensorRT."""
    from serve.engines.encoder_tensorrt import EncoderEngines

    check_native(directory, device, provider, backend)
    return EncoderEngines.load(directory, check_hashes)


def kept_of(
    part: Part, batches: Sequence[dict[str, NDArray[Any]]]
) -> dict[Place, list[NDArray[np.int64]]]:
    """The kept tokens of each row at each drop place of a part, from several runs of one graph."""
    names = [name for name in batches[0] if name.startswith(KEPT)]
    return {
        (part, int(name.removeprefix(KEPT))): [row for batch in batches for row in batch[name]]
        for name in names
    }


def ms_since(start: float) -> float:
    """Milliseconds since ``start`` of ``perf_counter``."""
    return (perf_counter() - start) * 1000
