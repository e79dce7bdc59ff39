"""The three graphs of a LLaVA artifact, in ONNX Runtime or in OpenVINO."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.artifact.llava_manifest import KEPT, LlavaArtifact
from serve.backends.base import BackendName, Prefill, RequestSize, Runtime
from serve.backends.llava_decoder import Decoder
from serve.backends.llava_layout import DecoderState
from serve.backends.llava_rows import DecoderRows
from serve.backends.seen_images import Seen, SeenImages, digests_of
from serve.backends.seen_prefixes import PromptKey, SeenPrefixes
from serve.generation.finite import check_finite


class GraphBackend:
    """The graphs of one artifact (see ``Backend``); caches stay on the device."""

    def __init__(self, artifact: LlavaArtifact, runtime: Runtime) -> None:
        """Arguments as ``open_artifact`` returns them."""
        self.manifest = artifact.manifest
        self.tokenizer = artifact.tokenizer
        self.name: BackendName = runtime.name
        self.provider: str = runtime.label
        self.device: Literal["cpu", "cuda"] = runtime.device
        self._vision = runtime.graph(artifact.graph("vision_encoder"))
        self._embed = runtime.table(artifact.graph("embed_tokens"))
        graph, steps = runtime.decoder(artifact.graph("decoder_model"))
        self._decoder = Decoder(graph, self.manifest, runtime.buffers, steps)
        self._images: SeenImages | None = None
        self._prefixes: SeenPrefixes | None = None

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """See ``Backend.check``: every size that fits the model's positions can run."""
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
        """See ``Backend.prefill``.

        Raises:
            CompExportError: image features are not finite.
        """
        start = perf_counter()
        prompt = self._key_of(pixels, ids, vision)
        prefixes = self._prefixes
        known = prefixes.beginning_of(prompt) if prefixes and prompt else None
        held = known.held if known else 0
        features, selected = None, None
        selection = self.manifest.vision.selection
        if selection is not None:
            selected = np.zeros((0, selection.dominant), np.int64)
        if pixels is not None and held <= vision.max():
            features, selected = self._features_of(pixels)
        vision_ms = (perf_counter() - start) * 1000
        (embeds,), _ = self._embed.run({"input_ids": ids}, ["inputs_embeds"])
        if features is not None:
            rows = np.arange(len(ids))[:, None]
            embeds[rows, vision] = features.reshape(len(ids), -1, features.shape[-1])
        if known is not None:
            embeds = embeds[:, held:]
            vision, text = (each[each >= held][None] - held for each in (vision, text))
        logits, kept, state = self._decoder.prefill(embeds, vision, text, keep_factor, known)
        if prefixes and prompt:
            prefixes.keep(prompt, state.caches, self._decoder.layout.bytes_of(state))
        return Prefill(logits, kept, state, vision_ms, selected, held)

    def _key_of(
        self, pixels: NDArray[np.float32] | None, ids: NDArray[np.int64], vision: NDArray[np.int64]
    ) -> PromptKey | None:
        """The key of a prompt by itself; None if caches are not kept, or for several prompts."""
        if self._prefixes is None or len(ids) > 1:
            return None
        images = () if pixels is None else tuple(digests_of(pixels))
        begins = vision[0].reshape(len(images), -1)[:, 0] if images else ()
        return PromptKey(ids[0], images, tuple(map(int, begins)))

    def _features_of(
        self, pixels: NDArray[np.float32]
    ) -> tuple[NDArray[np.floating], NDArray[np.int64] | None]:
        """Features of images ``[I, T, d]``, and the tokens that the tower selected ``[I, k]``, if it does."""
        seen = self._see(pixels) if self._images is None else self._images.of(pixels, self._see)
        features = np.stack([each.features for each in seen])
        if self.manifest.vision.selection is None:
            return features, None
        return features, np.stack([each.selected for each in seen if each.selected is not None])

    def _see(self, pixels: NDArray[np.float32]) -> list[Seen]:
        """Run the vision encoder on images ``[I, C, S, S]``."""
        wanted = ["image_features", *([KEPT] if self.manifest.vision.selection else [])]
        (features, *rest), _ = self._vision.run({"pixel_values": pixels}, wanted)
        check_finite(features, "the features of the images", self.manifest.precision)
        selected = rest[0] if rest else [None] * len(pixels)
        return [Seen(*each) for each in zip(features, selected, strict=True)]

    def keep_images(self, max_bytes: int) -> SeenImages:
        """See ``Backend.keep_images``."""
        self._images = SeenImages(max_bytes)
        return self._images

    def keep_prefixes(self, max_bytes: int) -> SeenPrefixes | None:
        """See ``Backend.keep_prefixes``."""
        if self._decoder.continues and self.manifest.vision.selection is None:
            self._prefixes = SeenPrefixes(max_bytes)
        return self._prefixes

    def rows(self, rows: int, places: int) -> DecoderRows | None:
        """See ``Backend.rows``."""

        def table(ids: NDArray[np.int64]) -> Any:
            _, (embeds,) = self._embed.run({"input_ids": ids}, kept=["inputs_embeds"])
            return embeds

        return self._decoder.rows(table, rows, places)

    def step(self, tokens: Sequence[int], state: DecoderState) -> tuple[NDArray[Any], DecoderState]:
        """See ``Backend.step``."""
        ids = np.array(tokens, dtype=np.int64)[:, None]
        _, (embeds,) = self._embed.run({"input_ids": ids}, kept=["inputs_embeds"])
        return self._decoder.step(embeds, len(tokens), state)

    def release(self, state: DecoderState) -> None:
        """See ``Backend.release``."""
        self._decoder.release(state)
