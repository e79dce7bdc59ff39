"""The caches of a decoder: their layout in the graph, and the state between decode steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact.caches import CACHE_LENGTHS


@dataclass(frozen=True)
class DecoderState:
    """The state between decode steps, for a batch of B sequences in step.

    Attributes:
        caches: key, value of layer 0, key, value of layer 1, …; in the graph's own form.
        position: position of the next token: positions are kept, not renumbered.
        lengths: tokens in the caches of each segment (``export.artifact.caches``).
        held: the binding of ``Steps``, from the first step on.
    """

    caches: tuple[Any, ...]
    position: int
    lengths: tuple[int, ...]
    held: Any = None


@dataclass(frozen=True)
class DecoderLayout:
    """The inputs of a decoder: key, value of layer 0, key, value of layer 1, …, and what a step takes.

    Attributes:
        past: names of the caches' inputs.
        heads, dtypes, segment_of: heads, element type and segment of each cache.
        segments: number of segments (``export.artifact.caches``).
        counted: whether the graph takes the caches' lengths.
    """

    past: tuple[str, ...]
    heads: tuple[int, ...]
    dtypes: tuple[np.dtype[Any], ...]
    segment_of: tuple[int, ...]
    segments: int
    head_dim: int
    counted: bool

    def bytes_of(self, state: DecoderState) -> int:
        """Bytes of the tokens in the caches of one sequence."""
        each = zip(self.heads, self.dtypes, self.segment_of, strict=True)
        return sum(
            heads * state.lengths[segment] * self.head_dim * dtype.itemsize
            for heads, dtype, segment in each
        )

    def step_feeds(
        self, embeds: Any, positions: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> dict[str, Any]:
        """Inputs of a step other than caches.

        Args:
            embeds: ``[B, 1, d]``, as a graph kept it.
            positions: position of each token ``[B, 1]``.
            lengths: tokens in the caches, ``[segments, B]``.
        """
        batch = len(positions)
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "vision_positions": np.zeros((batch, 0), dtype=np.int64),
            "text_positions": np.zeros((batch, 1), dtype=np.int64),
        }
        return feeds | ({CACHE_LENGTHS: lengths} if self.counted else {})
