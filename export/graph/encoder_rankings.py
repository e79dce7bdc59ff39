"""Rank an encoder's tokens at a drop place, as ``comp.importance.encoder_rankings`` does in torch.

A graph has neither padding nor masked heads: all tokens and all heads count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from comp.plan import Ranking
from export.graph.attention import Heads
from export.graph.builder import GraphBuilder
from export.graph.linear import axis_size, cast, cast_to_float32, split_heads
from export.graph.norm import unit_rows
from export.graph.token_gather import first_row, last_row

FLAT, FAR, NONE = 1e-6, 1e4, -3.0  # as in torch
INT32, FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


@dataclass(frozen=True)
class AttentionRecord:
    """The results of a block's attention that rankings use.

    Attributes:
        weights: attention ``[B, H, N, N]`` float32.
        key, mixed: keys, and the heads' outputs, ``[B, N, H·hd]``.
        heads: head counts of the block.
        last: whether the last token always stays; otherwise the first.
        query: as ``key``.
    """

    weights: ir.Value
    key: ir.Value
    mixed: ir.Value
    heads: Heads
    last: bool
    query: ir.Value


def importance_of(
    graph: GraphBuilder,
    ranking: Ranking,
    record: AttentionRecord,
    responses: Callable[[], ir.Value],
) -> ir.Value:
    """Importance ``[B, N]`` float32 in [0, 1]; ``responses`` to a dictionary are ``[B, N, T]``."""
    if ranking == "received":
        return received(graph, record.weights)
    if ranking == "informativity":
        return _informativity(graph, record)
    if ranking == "matched":
        return _matched(graph, record)
    return _three_scores(graph, record, responses())


def received(graph: GraphBuilder, weights: ir.Value) -> ir.Value:
    """Attention that each token receives from the strongest head, mean over queries (Eq. 6): ``[B, N]``."""
    strongest = graph.op("ReduceMax", weights, graph.constant([1]), keepdims=0)
    return graph.op("ReduceMean", strongest, graph.constant([1]), keepdims=0)


def similarity(graph: GraphBuilder, record: AttentionRecord) -> ir.Value:
    """Cosine similarities of the tokens by their keys ``[B, N, N]`` float32."""
    unit = unit_rows(graph, record.key)
    return graph.op("MatMul", unit, graph.op("Transpose", unit, perm=(0, 2, 1)))


def indices(graph: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    """``0, 1, …`` along an axis of ``x``, int32."""
    # int64 up to here: ONNX Runtime (seen: 1.31) takes a size that it knows for int64 even after a
    # cast to int32, and then refuses the graph.
    end = graph.op("Squeeze", axis_size(graph, x, axis), graph.constant([0]))
    return cast(graph, graph.op("Range", graph.constant(0), end, graph.constant(1)), INT32)


def place_that_stays(graph: GraphBuilder, x: ir.Value, last: bool) -> ir.Value:
    """Index of the token of ``x [B, N, ...]`` that is never dropped, int32 ``[1]``."""
    if not last:
        return graph.constant([0], np.int32)
    size = cast(graph, axis_size(graph, x, 1), INT32)
    return graph.op("Sub", size, graph.constant([1], np.int32))


def _informativity(graph: GraphBuilder, record: AttentionRecord) -> ir.Value:
    """Turbo's attention minus redundancy, scaled to [0, 1]."""
    places, others = _others(graph, record)
    attention = graph.op("ReduceMean", _of_query(graph, record), graph.constant([1]), keepdims=0)
    pairs = _pairs(graph, places, others)
    near = graph.op("Where", pairs, similarity(graph, record), _number(graph, -1.0))
    redundancy = graph.op("ReduceMax", near, graph.constant([2]), keepdims=0)
    difference = graph.op("Sub", _scaled(graph, attention, others), redundancy)
    scaled = graph.op("Div", graph.op("Add", difference, _number(graph, 1)), _number(graph, 3))
    clipped = graph.op("Clip", scaled, _number(graph, 0), _number(graph, 1))
    return graph.op("Where", others, clipped, _number(graph, 0))


def _matched(graph: GraphBuilder, record: AttentionRecord) -> ir.Value:
    """CrossGET's matching score, scaled to [0, 1]: see ``comp.importance.encoder_rankings.matched``."""
    places, others = _others(graph, record)
    unit = unit_rows(graph, record.key)
    alike = graph.op("MatMul", unit, graph.op("Transpose", unit, perm=(0, 2, 1)))
    both = graph.op("Add", alike, graph.op("Transpose", alike, perm=(0, 2, 1)))
    none = _number(graph, NONE)
    halved = graph.op("Mul", both, _number(graph, 0.5))
    near = graph.op("Where", _pairs(graph, places, others), halved, none)
    mine = graph.op("ReduceMax", near, graph.constant([2]), keepdims=1)  # [B, N, 1]
    theirs = graph.op("Transpose", mine, perm=(0, 2, 1))
    columns, rows = graph.constant([0]), graph.constant([1])
    later = graph.op(  # [N, N]: the second of a pair comes after the first
        "Greater", graph.op("Unsqueeze", places, columns), graph.op("Unsqueeze", places, rows)
    )
    tied = graph.op("And", graph.op("Equal", mine, theirs), later)
    candidates = graph.op("Or", graph.op("Greater", mine, theirs), tied)
    nearest = graph.op(
        "ReduceMax", graph.op("Where", candidates, near, none), graph.constant([2]), keepdims=0
    )
    row = last_row(graph, record.query) if record.last else first_row(graph, record.query)
    guide = graph.op("Transpose", unit_rows(graph, row), perm=(0, 2, 1))
    guided = graph.op("Squeeze", graph.op("MatMul", unit, guide), graph.constant([2]))
    raised = graph.op("Add", graph.op("Sub", guided, nearest), _number(graph, 2))
    scaled = graph.op("Div", raised, _number(graph, 6))
    clipped = graph.op("Clip", scaled, _number(graph, 0), _number(graph, 1))
    return graph.op("Where", others, clipped, _number(graph, 0))


def _three_scores(graph: GraphBuilder, record: AttentionRecord, responses: ir.Value) -> ir.Value:
    """MADTP's mean of attention received, response to the dictionary, and attention of the query token."""
    _, others = _others(graph, record)
    heads = split_heads(graph, record.mixed, record.heads.dim, record.heads.query)
    wide = cast_to_float32(graph, graph.op("Transpose", heads, perm=(0, 2, 1, 3)))
    square = graph.op("ReduceSum", graph.op("Mul", wide, wide), graph.constant([3]), keepdims=0)
    lengths = graph.op("Sqrt", square)  # [B, H, N]
    total = graph.op("ReduceSum", lengths, graph.constant([1]), keepdims=1)
    share = graph.op("Div", lengths, graph.op("Max", total, _number(graph, FLAT)))
    query_attention = graph.op("Mul", share, _of_query(graph, record))
    scores = (
        received(graph, record.weights),
        graph.op("ReduceMax", responses, graph.constant([2]), keepdims=0),
        graph.op("ReduceSum", query_attention, graph.constant([1]), keepdims=0),
    )
    first, second, third = (_scaled(graph, score, others) for score in scores)
    added = graph.op("Add", graph.op("Add", first, second), third)
    return graph.op("Div", added, _number(graph, 3))


def _scaled(graph: GraphBuilder, scores: ir.Value, others: ir.Value) -> ir.Value:
    """``scores [B, N]`` scaled to [0, 1] over the ``others [N]``; 0 elsewhere."""
    axis = graph.constant([1])
    above = graph.op("Where", others, scores, _number(graph, FAR))
    below = graph.op("Where", others, scores, _number(graph, -FAR))
    low = graph.op("ReduceMin", above, axis, keepdims=1)
    high = graph.op("ReduceMax", below, axis, keepdims=1)
    spread = graph.op("Max", graph.op("Sub", high, low), _number(graph, FLAT))
    scaled = graph.op("Div", graph.op("Sub", scores, low), spread)
    return graph.op("Where", others, scaled, _number(graph, 0))


def _of_query(graph: GraphBuilder, record: AttentionRecord) -> ir.Value:
    """Attention of the token that stays to all others, ``[B, H, N]``."""
    axis = graph.constant([2])
    begin, end = ([-1], [2**31 - 1]) if record.last else ([0], [1])
    row = graph.op("Slice", record.weights, graph.constant(begin), graph.constant(end), axis)
    return graph.op("Squeeze", row, axis)


def _pairs(graph: GraphBuilder, places: ir.Value, others: ir.Value) -> ir.Value:
    """Pairs of different tokens that may both be dropped, ``[N, N]``."""
    columns, rows = graph.constant([0]), graph.constant([1])
    same = graph.op(
        "Equal", graph.op("Unsqueeze", places, columns), graph.op("Unsqueeze", places, rows)
    )
    both = graph.op(
        "And", graph.op("Unsqueeze", others, columns), graph.op("Unsqueeze", others, rows)
    )
    return graph.op("And", both, graph.op("Not", same))


def _others(graph: GraphBuilder, record: AttentionRecord) -> tuple[ir.Value, ir.Value]:
    """Indices ``[N]`` int32, and which of them may be dropped."""
    places = indices(graph, record.key, 1)
    stays = place_that_stays(graph, record.key, record.last)
    return places, graph.op("Not", graph.op("Equal", places, stays))


def _number(graph: GraphBuilder, value: float) -> ir.Value:
    return graph.constant(value, np.float32)
