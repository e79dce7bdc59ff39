"""ONNX Runtime: the three graphs of an artifact, on a CPU or a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.llava_manifest import KEPT, LlavaArtifact
from serve.backends.base import BackendName, Prefill, ProviderChoice, RequestSize
from serve.backends.opening import open_artifact, session_maker
from serve.backends.ort_decoder import Decoder, DecoderState
from serve.backends.ort_session import Graph
from serve.backends.providers import Provider, device_of


class OnnxRuntimeBackend:
    """The graphs of one artifact in ONNX Runtime (see ``Backend``); caches stay where they are."""

    name: BackendName = "onnxruntime"

    def __init__(self, artifact: LlavaArtifact, provider: Provider, threads: int | None) -> None:
        """Use ``load``."""
        self.manifest = artifact.manifest
        self.tokenizer = artifact.tokenizer
        self.provider: str = provider
        self.device: Literal["cpu", "cuda"] = device_of(provider)
        maker = session_maker(self.manifest, provider, threads)
        self._vision = Graph(maker.session(artifact.vision_encoder), self.device)
        # A table look-up: more than one thread only costs, and there is nothing to compile.
        plain: Provider = "cuda" if provider == "tensorrt" else provider
        if provider == "tensorrt-rtx":
            plain = "cpu"
        table = replace(maker, provider=plain, threads=1)
        self._embed = Graph(table.session(artifact.embed_tokens), device_of(plain))
        decoder = Graph(maker.session(artifact.decoder_model), self.device)
        self._decoder = Decoder(decoder, self.manifest)

    @classmethod
    def load(
        cls,
        directory: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        check_hashes: bool = True,
        provider: ProviderChoice = "auto",
    ) -> "OnnxRuntimeBackend":
        """Load an artifact directory.

        Raises:
            CompExportError: a missing, damaged or unloadable artifact; a provider that is not there
                or does not run this flavour or precision.
        """
        artifact, chosen = open_artifact(directory, LlavaArtifact, device, check_hashes, provider)
        return cls(artifact, chosen, threads)

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """See ``Backend.check``: any size that the model's positions allow will run."""
        del size
        self._decoder.check_keep_factor(keep_factor)

    def prefill(
        self,
        pixels: NDArray[np.float32] | None,
        ids: NDArray[np.int64],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
        keep_factor: float,
    ) -> Prefill:
        """See ``Backend.prefill``."""
        start = perf_counter()
        features, selected = None, None
        selection = self.manifest.vision.selection
        if selection is not None:
            selected = np.zeros((0, selection.dominant), np.int64)
        if pixels is not None:
            wanted = ["image_features", *([KEPT] if selection else [])]
            (features, *rest), _ = self._vision.run({"pixel_values": pixels}, wanted)
            selected = rest[0] if rest else None
        vision_ms = (perf_counter() - start) * 1000
        (embeds,), _ = self._embed.run({"input_ids": ids}, ["inputs_embeds"])
        if features is not None:
            rows = np.arange(len(ids))[:, None]
            embeds[rows, vision] = features.reshape(len(ids), -1, features.shape[-1])
        logits, kept, state = self._decoder.prefill(embeds, vision, text, keep_factor)
        return Prefill(logits, kept, state, vision_ms, selected)

    def step(self, tokens: Sequence[int], state: DecoderState) -> tuple[NDArray[Any], DecoderState]:
        """See ``Backend.step``; here the state that went in stays as it was."""
        ids = np.array(tokens, dtype=np.int64)[:, None]
        _, (embeds,) = self._embed.run({"input_ids": ids}, kept=["inputs_embeds"])
        return self._decoder.step(embeds, len(tokens), state)

    def release(self, state: DecoderState) -> None:
        """See ``Backend.release``: ONNX Runtime frees the caches with the state."""
