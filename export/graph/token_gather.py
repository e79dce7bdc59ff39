"""Gather the tokens that stay at a drop place, from shapes and scores alone.

``k = ceil(ratio · n)`` comes from the *shape* of the positions, never from data. So runtimes that
plan memory from shapes can run it, and a decode step (no vision tokens, one text token) uses the same
nodes and keeps its token.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from comp.plan import KEEP_UNIT, DropPlan
from export.artifact.llava_ports import KEEP_FACTOR as KEEP_FACTOR
from export.graph.builder import GraphBuilder
from export.graph.linear import axis_size, cast

ALWAYS = 2.0  # added to the last token's score; scores are at most 1


@dataclass(frozen=True)
class Tokens:
    """The present tokens, all indices ascending.

    Attributes:
        position_ids: ``[B, N]``.
        vision: indices of vision tokens among the present ones, ``[B, Nv]``.
        text: indices of text tokens among the present ones, ``[B, Nt]``.
        original: index of each present token in the whole sequence ``[B, N]``; ``None`` before a drop.
    """

    position_ids: ir.Value
    vision: ir.Value
    text: ir.Value
    original: ir.Value | None = None


@dataclass(frozen=True)
class Gathered:
    """The tokens that stay, and their indices ``keep [B, K]`` among those that were present."""

    tokens: Tokens
    keep: ir.Value


def drop_tokens(
    graph: GraphBuilder,
    tokens: Tokens,
    scores: ir.Value,
    drop: DropPlan,
    keep_factor: ir.Value | None,
    more: bool,
) -> Gathered:
    """Keep the highest scores of each kind; the last token always stays.

    Args:
        tokens: the present tokens.
        scores: importance ``[B, N]`` float32, at most 1.
        drop: keep ratios (whole thousandths).
        keep_factor: float32 scalar that scales the ratios, or ``None``.
        more: whether another drop follows; otherwise the kinds are not needed any more.
    """
    raised = _raise_last(graph, scores)
    k_vision = _count(graph, tokens.vision, drop.vision_keep_ratio, keep_factor)
    k_text = _count(graph, tokens.text, drop.text_keep_ratio, keep_factor)
    vision = _strongest(graph, raised, tokens.vision, k_vision)
    text = _strongest(graph, raised, tokens.text, k_text)

    # One ascending sort of both kinds; the lowest bit carries the kind through it.
    two = graph.constant(2, np.int32)
    one = graph.constant(1, np.int32)
    keys = graph.op(
        "Concat",
        graph.op("Add", graph.op("Mul", vision, two), one),
        graph.op("Mul", text, two),
        axis=1,
    )
    k = graph.op("Add", k_vision, k_text)
    ordered, _ = graph.ops("TopK", keys, k, outputs=2, axis=1, largest=0, sorted=1)
    keep = cast(graph, graph.op("Div", ordered, two), ir.DataType.INT64)
    original = (
        keep
        if tokens.original is None
        else graph.op("GatherElements", tokens.original, keep, axis=1)
    )
    position_ids = graph.op("GatherElements", tokens.position_ids, keep, axis=1)
    if not more:
        return Gathered(Tokens(position_ids, tokens.vision, tokens.text, original), keep)
    is_vision = graph.op("Sub", ordered, graph.op("Mul", graph.op("Div", ordered, two), two))
    vision_places, text_places = _places(graph, is_vision, k_vision, k)
    return Gathered(Tokens(position_ids, vision_places, text_places, original), keep)


@dataclass(frozen=True)
class Strongest:
    """The kept tokens of one kind: indices ``[B, k]`` ascending, and that of the weakest ``[B, 1]``."""

    places: ir.Value
    weakest: ir.Value


def keep_strongest(graph: GraphBuilder, scores: ir.Value, ratio: float, last: bool) -> Strongest:
    """Keep the ``k = ceil(ratio · N)`` highest scores among tokens of one kind.

    Args:
        graph: where to build.
        scores: importance ``[B, N]`` float32, at most 1.
        ratio: keep ratio (whole thousandths).
        last: whether the last token always stays; otherwise the first.
    """
    raised = _raise_last(graph, scores) if last else raise_first(graph, scores)
    k = _count(graph, scores, ratio, None)
    _, chosen = graph.ops("TopK", raised, k, outputs=2, axis=1, largest=1, sorted=1)
    places = cast(graph, chosen, ir.DataType.INT32)  # TensorRT (seen: RTX 1.7) sorts no int64
    ordered, _ = graph.ops("TopK", places, k, outputs=2, axis=1, largest=0, sorted=1)
    return Strongest(cast(graph, ordered, ir.DataType.INT64), last_row(graph, chosen))


def first_row(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """``[B, N, d] → [B, 1, d]``."""
    return graph.op("Slice", x, graph.constant([0]), graph.constant([1]), graph.constant([1]))


def last_row(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """``[B, N, ...] → [B, 1, ...]``."""
    end, axis = graph.constant([2**31 - 1]), graph.constant([1])
    return graph.op("Slice", x, graph.constant([-1]), end, axis)


def gather_rows(graph: GraphBuilder, x: ir.Value, keep: ir.Value) -> ir.Value:
    """``x [B, N, d]``, ``keep [B, K] → [B, K, d]``."""
    indices = graph.op("Unsqueeze", keep, graph.constant([2]))
    return graph.op("GatherND", x, indices, batch_dims=1)


def _count(
    graph: GraphBuilder, positions: ir.Value, ratio: float, keep_factor: ir.Value | None
) -> ir.Value:
    """``ceil(n · thousandths / 1000)`` of the n tokens of a kind, int64 ``[1]``."""
    thousandths = round(ratio * KEEP_UNIT)
    share = graph.constant([thousandths])
    if keep_factor is not None:
        scaled = graph.op("Mul", keep_factor, graph.constant([thousandths], np.float32))
        low, high = graph.constant(1, np.float32), graph.constant(KEEP_UNIT, np.float32)
        share = cast(
            graph, graph.op("Clip", graph.op("Round", scaled), low, high), ir.DataType.INT64
        )
    product = graph.op("Mul", axis_size(graph, positions, 1), share)
    rounded_up = graph.op("Add", product, graph.constant([KEEP_UNIT - 1]))
    return graph.op("Div", rounded_up, graph.constant([KEEP_UNIT]))


def _raise_last(graph: GraphBuilder, scores: ir.Value) -> ir.Value:
    minus, zero = graph.constant([-1]), graph.constant([0])
    axis, end = graph.constant([1]), graph.constant([2**31 - 1])
    last = graph.op("Slice", scores, minus, end, axis)
    others = graph.op("Slice", scores, zero, minus, axis)
    raised = graph.op("Add", last, graph.constant(ALWAYS, np.float32))
    return graph.op("Concat", others, raised, axis=1)


def raise_first(graph: GraphBuilder, scores: ir.Value) -> ir.Value:
    """``scores [B, N]`` with that of the first token raised above all others."""
    zero, one = graph.constant([0]), graph.constant([1])
    axis, end = graph.constant([1]), graph.constant([2**31 - 1])
    first = graph.op("Slice", scores, zero, one, axis)
    others = graph.op("Slice", scores, one, end, axis)
    raised = graph.op("Add", first, graph.constant(ALWAYS, np.float32))
    return graph.op("Concat", raised, others, axis=1)


def _strongest(graph: GraphBuilder, scores: ir.Value, positions: ir.Value, k: ir.Value) -> ir.Value:
    """Positions ``[B, k]`` int32 of the k highest scores among ``positions [B, n]``."""
    mine = graph.op("GatherElements", scores, positions, axis=1)
    _, chosen = graph.ops("TopK", mine, k, outputs=2, axis=1, largest=1, sorted=1)
    return cast(graph, graph.op("GatherElements", positions, chosen, axis=1), ir.DataType.INT32)


def _places(
    graph: GraphBuilder, is_vision: ir.Value, k_vision: ir.Value, k: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Ascending indices of the ones ``[B, k_vision]`` and of the zeros in ``is_vision [B, k]``."""
    # Vision tokens come first when each subtracts k from its own index. One sort of everything and
    # two slices: OpenVINO (seen: 2026.4) refuses a TopK of no elements among some.
    size = cast(graph, k, ir.DataType.INT32)
    index = graph.op(
        "Range",
        graph.constant(0, np.int32),
        graph.op("Squeeze", size, graph.constant([0])),
        graph.constant(1, np.int32),
    )
    keys = graph.op("Sub", index, graph.op("Mul", is_vision, size))
    _, places = graph.ops("TopK", keys, k, outputs=2, axis=1, largest=0, sorted=1)
    axis = graph.constant([1])
    return (
        graph.op("Slice", places, graph.constant([0]), k_vision, axis),
        graph.op("Slice", places, k_vision, k, axis),
    )
