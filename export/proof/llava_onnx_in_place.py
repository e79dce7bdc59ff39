"""Run ``decoder_in_place.onnx`` in ONNX Runtime: the graph of TensorRT, verified without a GPU.

The caches have a fixed size and are filled from the front, like the engine's buffers.
"""

from pathlib import Path
from typing import Any

import numpy as np

from comp.errors import CompExportError
from export.artifact.caches import CACHE_LENGTHS, PAST, cached_tokens, segments_of
from export.artifact.llava_manifest import LlavaArtifact
from export.proof.llava_onnx import OnnxRunner, OnnxState

ROOM = 64  # tokens that can be generated


class InPlaceRunner(OnnxRunner):
    """As ``OnnxRunner``, with the decoder that writes its caches in place.

    Args:
        artifact: an artifact of the standard flavour.
        room: places in the caches for generated tokens.

    Raises:
        CompExportError: another flavour, or an ONNX Runtime too old for ``TensorScatter``.
    """

    def __init__(self, artifact: LlavaArtifact | Path, room: int = ROOM) -> None:
        self._room = room
        super().__init__(artifact)
        self._segments = segments_of(self._shape)

    def _decoder_path(self) -> Path:
        if self.artifact.manifest.flavour != "standard":
            raise CompExportError(
                f"{self.artifact.path} is of the {self.artifact.manifest.flavour} flavour, which has "
                "no decoder with caches in place: export with --flavour standard"
            )
        return self.artifact.graph("decoder_in_place")

    def _empty_caches(self, batch: int, vision: int, text: int) -> dict[str, np.ndarray]:
        tokens = cached_tokens(self._shape, vision, text)
        return self._caches(batch, [tokens[s] + self._room for s in self._segments])

    def _places(self, cache: Any) -> int:
        """Number of token places in a cache."""
        places: int = cache.shape[2]
        return places

    def _run(
        self, feeds: dict[str, np.ndarray], state: OnnxState
    ) -> tuple[np.ndarray, list[np.ndarray], OnnxState]:
        vision, text = (feeds[f"{kind}_positions"].shape[1] for kind in ("vision", "text"))
        new = cached_tokens(self._shape, vision, text)
        filled = state.filled or (0,) * len(new)
        batch = len(feeds["inputs_embeds"])
        rows = np.repeat(np.array(filled, np.int64)[:, None], batch, axis=1)
        if filled[0] + new[0] > self._places(state.caches[f"{PAST}0.key"]):
            raise CompExportError(f"room for {self._room} new tokens is used up: ask for fewer")
        logits, kept, after = super()._run(feeds | {CACHE_LENGTHS: rows}, state)
        total = tuple(old + count for old, count in zip(filled, new, strict=True))
        return logits, kept, OnnxState(after.caches, after.position, total)
