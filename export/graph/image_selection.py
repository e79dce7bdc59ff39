"""Select an image's tokens after a vision tower, as ``comp.tokens.image_selection`` does in torch.

All counts are fixed by the plan; only which tokens are selected depends on data.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from comp.plan import ImageSelection
from export.graph.attention import Heads
from export.graph.builder import GraphBuilder
from export.graph.encoder_rankings import FLOAT, INT32
from export.graph.linear import cast, cast_to_float32, cast_to_graph, split_heads
from export.graph.norm import unit_rows
from export.graph.token_gather import first_row, gather_rows, raise_first


@dataclass(frozen=True)
class TowerView:
    """The last block's queries and keys that the selection uses.

    Attributes:
        query, key: ``[I, N, H·hd]``.
        heads: head counts of the block.
        class_token: whether the first of the N tokens is [CLS].
    """

    query: ir.Value
    key: ir.Value
    heads: Heads
    class_token: bool = True

    def attention(self, graph: GraphBuilder) -> ir.Value:
        """Attention to every token, averaged over heads: ``[I, N]`` float32.

        It is that of [CLS] or, in a tower without [CLS], the mean over all tokens.
        """
        asking = first_row(graph, self.query) if self.class_token else self.query
        query, key = (
            split_heads(graph, cast_to_float32(graph, x), self.heads.dim, self.heads.query)
            for x in (asking, self.key)
        )
        scaled = graph.op("Mul", query, graph.constant(self.heads.dim**-0.5, np.float32))
        asking = graph.op("Transpose", scaled, perm=(0, 2, 1, 3))  # [I, H, 1 or N, hd]
        logits = graph.op("MatMul", asking, graph.op("Transpose", key, perm=(0, 2, 3, 1)))
        attention = graph.op("Softmax", logits, axis=-1)
        return graph.op("ReduceMean", attention, graph.constant([1, 2]), keepdims=0)

    def mean_key(self, graph: GraphBuilder) -> ir.Value:
        """The keys averaged over heads, ``[I, N, hd]`` float32."""
        wide = cast_to_float32(graph, self.key)
        split = split_heads(graph, wide, self.heads.dim, self.heads.query)
        return graph.op("ReduceMean", split, graph.constant([2]), keepdims=0)


@dataclass(frozen=True)
class Chosen:
    """The selected tokens of each image ``[I, K, d]``, and the indices of the dominant ones, ascending."""

    states: ir.Value
    dominant: ir.Value


def select_image_tokens(
    graph: GraphBuilder,
    states: ir.Value,
    view: TowerView,
    selection: ImageSelection,
    keeps_class_token: bool,
) -> Chosen:
    """Select the dominant tokens of each image, then append the contextual ones.

    Args:
        graph: where to build.
        states: ``[I, N, d]``, [CLS] first if there is one.
        view: queries and keys that rank the tokens.
        selection: numbers of dominant and of contextual tokens.
        keeps_class_token: whether [CLS] is one of the image's tokens; then it always stays.
    """
    scores, key = view.attention(graph), view.mean_key(graph)
    if keeps_class_token:
        scores = raise_first(graph, scores)
    elif view.class_token:
        scores, key, states = (_without_first(graph, x) for x in (scores, key, states))
    k = graph.constant([selection.dominant])
    _, strongest = graph.ops("TopK", scores, k, outputs=2, axis=1, largest=1, sorted=1)
    ordered, _ = graph.ops(
        "TopK", cast(graph, strongest, INT32), k, outputs=2, axis=1, largest=0, sorted=1
    )  # [I, dominant]; TensorRT (seen: RTX 1.7) sorts no int64
    dominant = cast(graph, ordered, ir.DataType.INT64)
    left = gather_rows(graph, states, dominant)
    if selection.contextual:
        groups = _groups(graph, ordered, key, selection)
        contextual = graph.op("MatMul", cast_to_graph(graph, groups), states)
        left = graph.op("Concat", left, contextual, axis=1)
    return Chosen(left, dominant)


def _groups(
    graph: GraphBuilder,
    dominant: ir.Value,
    key: ir.Value,
    selection: ImageSelection,
) -> ir.Value:
    """Weights of the tower's tokens in the contextual ones, ``[I, C, T]`` float32."""
    count = selection.tower_tokens
    places = graph.constant(np.arange(count), np.int32)
    last, middle = graph.constant([2]), graph.constant([1])
    same = graph.op("Equal", graph.op("Unsqueeze", dominant, last), places)
    chosen = graph.op("ReduceMax", cast(graph, same, INT32), middle, keepdims=0)  # [I, T]
    # Dominant tokens are moved after all others, which then come first, in order.
    late = graph.op("Mul", chosen, graph.constant(count, np.int32))
    rest, _ = graph.ops(
        "TopK",
        graph.op("Add", late, places),
        graph.constant([count - selection.dominant]),
        outputs=2,
        axis=1,
        largest=0,
        sorted=1,
    )
    strides = graph.constant(selection.target_places)
    targets = graph.op("Gather", rest, strides, axis=1)  # [I, C]
    unit = unit_rows(graph, key)
    theirs = gather_rows(graph, unit, cast(graph, targets, ir.DataType.INT64))
    near = graph.op("MatMul", theirs, graph.op("Transpose", unit, perm=(0, 2, 1)))  # [I, C, T]
    best = cast(graph, graph.op("ArgMax", near, axis=1, keepdims=1), INT32)
    numbers = graph.constant(np.arange(selection.contextual)[:, None], np.int32)
    itself = graph.op("Equal", graph.op("Unsqueeze", targets, last), places)
    is_target = graph.op("ReduceMax", cast(graph, itself, INT32), middle, keepdims=1)
    taken = graph.op("Add", is_target, graph.op("Unsqueeze", chosen, middle))  # [I, 1, T]
    free = graph.op("Equal", taken, graph.constant(0, np.int32))
    joins = graph.op("And", graph.op("Equal", best, numbers), free)
    members = cast(graph, graph.op("Or", itself, joins), FLOAT)
    return graph.op("Div", members, graph.op("ReduceSum", members, last, keepdims=1))


def _without_first(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """``[I, N, ...] → [I, N-1, ...]``."""
    one, end = graph.constant([1]), graph.constant([2**31 - 1])
    return graph.op("Slice", x, one, end, one)
