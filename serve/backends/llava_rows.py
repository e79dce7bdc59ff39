"""Decode answers together that began at different times: a row of fixed places for each."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve.backends.base import RowBuffers, Steps
from serve.backends.llava_layout import DecoderLayout, DecoderState


class Table(Protocol):
    """Looks token embeddings up: ids ``[B, 1]`` to ``[B, 1, d]``, as a graph kept it."""

    def __call__(self, ids: NDArray[np.int64]) -> Any: ...


class DecoderRows:
    """Caches of ``rows`` answers, of which the first ones run.

    The answers may have different lengths, in every segment: the graph takes ``cache_lengths [segments, B]``.
    The caches are allocated once; pages that no answer reaches take no memory.

    Args:
        layout: the decoder's caches.
        steps: its decode steps.
        buffers: allocates caches.
        table: looks embeddings up.
        rows: most answers at the same time.
        places: most tokens of one answer, with its prompt.
    """

    def __init__(
        self,
        layout: DecoderLayout,
        steps: Steps,
        buffers: RowBuffers,
        table: Table,
        rows: int,
        places: int,
    ) -> None:
        self.rows, self.places, self.running = rows, places, 0
        self._layout, self._steps, self._buffers, self._table = layout, steps, buffers, table
        self._caches = [
            buffers.empty((rows, heads, places, layout.head_dim), dtype)
            for heads, dtype in zip(layout.heads, layout.dtypes, strict=True)
        ]
        self._lengths = np.zeros((layout.segments, rows), np.int64)
        self._positions = np.zeros(rows, np.int64)
        self._bound: dict[int, Any] = {}  # by the number of rows that run

    def join(self, state: DecoderState, of: int = 0) -> int:
        """Copy the caches of prompt ``of`` of a batch into the next row, and return the row.

        The prompt has been checked: it and its answer have at most ``places`` tokens.
        """
        row = self.running
        if row == self.rows:
            raise RuntimeError("all rows run")
        for cache, own, segment in zip(
            self._caches, state.caches, self._layout.segment_of, strict=True
        ):
            self._buffers.copy(own, of, cache, row, state.lengths[segment])
        self._lengths[:, row] = state.lengths
        self._positions[row] = state.position
        self.running += 1
        return row

    def leave(self, row: int) -> int:
        """End the answer of a row; return the row whose answer is moved there (``row``: none is)."""
        last = self.running - 1
        if row != last:
            for cache, segment in zip(self._caches, self._layout.segment_of, strict=True):
                held = int(self._lengths[segment, last])
                self._buffers.copy(cache, last, cache, row, held)
            self._lengths[:, row] = self._lengths[:, last]
            self._positions[row] = self._positions[last]
        self.running = last
        return last

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run one token of each running row: ``logits [B, V]``."""
        count = self.running
        embeds = self._table(np.array(tokens, dtype=np.int64)[:, None])
        if count not in self._bound:
            first = [self._buffers.first(cache, count) for cache in self._caches]
            self._bound[count] = self._steps.begin(dict(zip(self._layout.past, first, strict=True)))
        feeds = self._layout.step_feeds(
            embeds, self._positions[:count, None], self._lengths[:, :count]
        )
        logits = self._steps.step(self._bound[count], feeds)
        self._lengths[:, :count] += 1
        self._positions[:count] += 1
        return logits[:, -1]
