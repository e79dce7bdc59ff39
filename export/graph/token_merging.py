"""Merge dropped tokens into kept ones, as ``comp/tokens/merging.py`` does in torch.

The k remaining tokens are mixtures of the N before the drop; k comes from shapes.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.builder import GraphBuilder
from export.graph.encoder_rankings import FLOAT, INT32, indices, place_that_stays
from export.graph.linear import cast
from export.graph.token_gather import Strongest, gather_rows

FLOOR = 1e-6  # as in torch


@dataclass(frozen=True)
class _Places:
    """Map of ``k`` kept tokens to the ``N`` tokens before the drop.

    Attributes:
        itself: ``[B, k, N]`` bool.
        kept: ``[B, 1, N]`` bool.
        stays: marks the kept token that always stays, ``[B, k, 1]`` bool.
        keep: indices of the kept ones ``[B, k, 1]`` int32.
    """

    itself: ir.Value
    kept: ir.Value
    stays: ir.Value
    keep: ir.Value


def similar_rows(
    graph: GraphBuilder,
    strongest: Strongest,
    similarity: ir.Value,
    size: ir.Value | None,
    last: bool,
) -> tuple[ir.Value, ir.Value]:
    """Merge each dropped token into the most similar kept one, except the one that always stays.

    Args:
        graph: where to build.
        strongest: the kept tokens.
        similarity: ``[B, N, N]`` float32.
        size: tokens merged in each before the drop ``[B, N]`` float32; ``None``: one each.
        last: whether the last token always stays; otherwise the first.

    Returns:
        Weights of the N tokens ``[B, k, N]`` float32, and the sizes of the remaining ones ``[B, k]``.
    """
    places = _places(graph, strongest, similarity, last)
    far = graph.constant(-2.0, np.float32)
    near = graph.op("Where", places.stays, far, gather_rows(graph, similarity, strongest.places))
    best = cast(graph, graph.op("ArgMax", near, axis=1, keepdims=1), INT32)  # [B, 1, N]
    rows = graph.op("Unsqueeze", indices(graph, strongest.places, 1), graph.constant([1]))
    other = graph.op("Not", graph.op("Or", places.kept, places.stays))
    joins = graph.op("And", graph.op("Equal", best, rows), other)
    weights = cast(graph, graph.op("Or", places.itself, joins), FLOAT)
    axis = graph.constant([2])
    if size is not None:
        weights = graph.op("Mul", weights, graph.op("Unsqueeze", size, graph.constant([1])))
    total = graph.op("ReduceSum", weights, axis, keepdims=1)
    return graph.op("Div", weights, total), graph.op("Squeeze", total, axis)


def one_row(
    graph: GraphBuilder, strongest: Strongest, importance: ir.Value, last: bool
) -> ir.Value:
    """Merge all dropped tokens and the weakest kept one into one, weighted by importance ``[B, N]``.

    Returns:
        Weights of the N tokens, ``[B, k, N]`` float32.
    """
    places = _places(graph, strongest, importance, last)
    weakest = graph.op("Unsqueeze", cast(graph, strongest.weakest, INT32), graph.constant([2]))
    row = graph.op(
        "And", graph.op("Equal", places.keep, weakest), graph.op("Not", places.stays)
    )  # [B, k, 1]
    itself = graph.op("And", places.itself, row)
    group = cast(graph, graph.op("Or", graph.op("Not", places.kept), itself), FLOAT)
    raised = graph.op("Add", importance, graph.constant(FLOOR, np.float32))
    shares = graph.op("Mul", group, graph.op("Unsqueeze", raised, graph.constant([1])))
    total = graph.op("ReduceSum", shares, graph.constant([2]), keepdims=1)
    mean = graph.op("Div", shares, graph.op("Max", total, graph.constant(FLOOR, np.float32)))
    return graph.op("Where", row, mean, cast(graph, places.itself, FLOAT))


def _places(graph: GraphBuilder, strongest: Strongest, tokens: ir.Value, last: bool) -> _Places:
    keep = graph.op("Unsqueeze", cast(graph, strongest.places, INT32), graph.constant([2]))
    itself = graph.op("Equal", keep, indices(graph, tokens, 1))
    kept = graph.op("ReduceMax", cast(graph, itself, FLOAT), graph.constant([1]), keepdims=1)
    stays = graph.op("Equal", keep, place_that_stays(graph, tokens, last))
    return _Places(itself, graph.op("Greater", kept, graph.constant(0, np.float32)), stays, keep)
