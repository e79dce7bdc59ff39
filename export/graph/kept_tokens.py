"""Track an encoder's tokens: rank, drop or merge them at each drop place."""

from collections.abc import Callable

import onnx_ir as ir

from comp.plan import DropPlan
from export.graph.builder import GraphBuilder
from export.graph.encoder_rankings import AttentionRecord, importance_of, received, similarity
from export.graph.linear import cast_to_graph
from export.graph.token_gather import Strongest, first_row, gather_rows, keep_strongest, last_row
from export.graph.token_merging import one_row, similar_rows


def drops_early(drop: DropPlan) -> bool:
    """Whether tokens are dropped before the attention's output projection, which then sees fewer rows.

    Not if they are merged, or ranked by their states after it.
    """
    return drop.merge == "none" and drop.ranking == "received"


class KeptTokens:
    """The tokens of an encoder, all of one kind; each drop declares ``kept.{m} [B, k]``."""

    def __init__(self, graph: GraphBuilder, last: bool) -> None:
        """``last``: whether the last token always stays; otherwise the first."""
        self._graph = graph
        self._last = last
        self._original: ir.Value | None = None
        self._size: ir.Value | None = None
        self._proportional = False

    def log_sizes(self) -> ir.Value | None:
        """Log sizes to add to the attention logits of each token, ``[B, 1, 1, N]`` float32, or ``None``."""
        if self._size is None or not self._proportional:
            return None
        axes = self._graph.constant([1, 2])
        return self._graph.op("Unsqueeze", self._graph.op("Log", self._size), axes)

    def drop(self, record: AttentionRecord, drop: DropPlan, *rows: ir.Value) -> list[ir.Value]:
        """Rows ``[B, k, d]`` of the tokens that receive most attention, from each of ``rows [B, N, d]``."""
        graph = self._graph
        strongest = self._strongest(received(graph, record.weights), drop)
        self._gather_sizes(strongest)
        return [gather_rows(graph, x, strongest.places) for x in rows]

    def left(
        self,
        record: AttentionRecord,
        drop: DropPlan,
        states: ir.Value,
        responses: Callable[[ir.Value], ir.Value],
    ) -> ir.Value:
        """Return the states ``[B, k, d]`` of the remaining tokens, with dropped ones merged into them.

        Args:
            record: the block's attention record.
            drop: the ranking, the merging and the keep ratio.
            states: after the attention, ``[B, N, d]``.
            responses: maps states to responses of the dictionary's entries, ``[B, N, T]``.
        """
        graph = self._graph
        importance = importance_of(graph, drop.ranking, record, lambda: responses(states))
        strongest = self._strongest(importance, drop)
        if drop.merge in ("similar", "proportional"):
            self._proportional = self._proportional or drop.merge == "proportional"
            alike = similarity(graph, record)
            shares, self._size = similar_rows(graph, strongest, alike, self._size, self._last)
            return graph.op("MatMul", cast_to_graph(graph, shares), states)
        self._gather_sizes(strongest)
        if drop.merge == "none":
            return gather_rows(graph, states, strongest.places)
        shares = one_row(graph, strongest, importance, self._last)
        return graph.op("MatMul", cast_to_graph(graph, shares), states)

    def only(self, x: ir.Value) -> ir.Value:
        """The row of the token that always stays: ``[B, N, d] → [B, 1, d]``."""
        return last_row(self._graph, x) if self._last else first_row(self._graph, x)

    def _gather_sizes(self, strongest: Strongest) -> None:
        if self._size is not None:
            self._size = self._graph.op("GatherElements", self._size, strongest.places, axis=1)

    def _strongest(self, scores: ir.Value, drop: DropPlan) -> Strongest:
        """Select the tokens with the highest scores, and declare their original indices as an output."""
        graph = self._graph
        strongest = keep_strongest(graph, scores, drop.keep_ratio, self._last)
        if self._original is not None:
            self._original = graph.op("GatherElements", self._original, strongest.places, axis=1)
        else:
            self._original = strongest.places
        name = f"kept.{drop.after_layer}"
        dims = ("batch", f"kept_{drop.after_layer}")
        graph.output(name, self._original, ir.DataType.INT64, dims)
        return strongest
