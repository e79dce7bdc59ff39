"""Rank a decoder's tokens: by the attention they receive, or by diversity."""

import numpy as np
import onnx_ir as ir

from comp.plan import PIVOTS
from export.graph.attention import Heads
from export.graph.builder import GraphBuilder
from export.graph.linear import axis_size, cast_to_float32, split_heads
from export.graph.norm import unit_rows
from export.graph.token_gather import Tokens, gather_rows, last_row


def importance_for_last(
    graph: GraphBuilder, query: ir.Value, key: ir.Value, heads: Heads, mean: bool = False
) -> ir.Value:
    """Eq. 6 with the last query: ``S_i = max_h softmax_i(q_last·k_i/√hd)``, h kept heads (Eq. 7).

    Only one row of scores is computed, in addition to the fused attention. ``query`` and ``key`` are the
    rotated ones of the present tokens (a prefill has no past; a decode step keeps its single token with any
    score). ``query`` may be that of the last token alone. ``mean``: average over heads instead of the
    maximum, as in FastV and PyramidDrop.

    Returns:
        ``[B, N]`` float32.
    """
    # Each KV head meets the group of queries it serves: [B, Hkv, G, hd] × [B, Hkv, hd, N].
    grouped = graph.op(
        "Reshape",
        last_row(graph, query),
        graph.constant([0, heads.key_value, heads.group, heads.dim]),
    )
    keys = key if not graph.target.fused else split_heads(graph, key, heads.dim, heads.key_value)
    keys = graph.op("Transpose", keys, perm=(0, 2, 3, 1))
    scaled = graph.op(
        "Mul", cast_to_float32(graph, grouped), graph.constant(heads.dim**-0.5, np.float32)
    )
    scores = graph.op("MatMul", scaled, cast_to_float32(graph, keys))  # [B, Hkv, G, N]
    received = graph.op("Softmax", scores, axis=-1)
    over = "ReduceMean" if mean else "ReduceMax"
    return graph.op(over, received, graph.constant([1, 2]), keepdims=0)


def diversity(
    graph: GraphBuilder, key: ir.Value, normed: ir.Value, tokens: Tokens, heads: Heads
) -> ir.Value:
    """Score the distance of tokens from a few pivots (DART), as ``comp.importance.decoder_rankings`` does.

    There are at most 4 pivots of each kind, and no more than there are tokens: none of the image in a
    decode step, whose single token is its own pivot.

    Args:
        graph: where to build.
        key: rotated keys of the block before, in the layout of ``RotaryEmbedding.apply``.
        normed: input states of the next block, ``[B, N, d]``.
        tokens: the present tokens.
        heads: head counts of the block before.

    Returns:
        ``[B, N]`` float32.
    """
    flat = key
    if not graph.target.fused:
        width = heads.key_value * heads.dim
        flat = graph.op("Reshape", key, graph.constant([0, 0, width]))
    norm = graph.op("ReduceL1", cast_to_float32(graph, flat), graph.constant([2]), keepdims=0)
    pivots = graph.op(
        "Concat", *(_greatest(graph, norm, kind) for kind in (tokens.vision, tokens.text)), axis=1
    )  # [B, P]
    unit = unit_rows(graph, normed)
    theirs = graph.op("Transpose", gather_rows(graph, unit, pivots), perm=(0, 2, 1))
    cosine = graph.op("MatMul", unit, theirs)  # [B, N, P]
    least = graph.op("ReduceMin", cosine, graph.constant([2]), keepdims=0)
    one, quarter, half = (graph.constant(value, np.float32) for value in (1.0, 0.25, 0.5))
    scores = graph.op("Mul", graph.op("Sub", one, least), quarter)
    raised = graph.op("Add", graph.op("GatherElements", scores, pivots, axis=1), half)
    return graph.op("ScatterElements", scores, pivots, raised, axis=1)


def _greatest(graph: GraphBuilder, norm: ir.Value, positions: ir.Value) -> ir.Value:
    """The positions ``[B, min(4, n)]`` of the greatest norms among ``positions [B, n]``."""
    k = graph.op("Min", axis_size(graph, positions, 1), graph.constant([PIVOTS]))
    mine = graph.op("GatherElements", norm, positions, axis=1)
    _, chosen = graph.ops("TopK", mine, k, outputs=2, axis=1, largest=1, sorted=1)
    return graph.op("GatherElements", positions, chosen, axis=1)
