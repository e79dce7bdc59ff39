"""Build a connector: neighbouring patches joined to one token, a norm, then linear layers."""

from math import isqrt

import onnx_ir as ir

from comp.checkpoints.connector_shape import CONNECTOR, NORM, NORM_EPS, ConnectorShape
from export.graph.builder import GraphBuilder
from export.graph.linear import activation, linear
from export.graph.norm import layer_norm
from export.weights.checkpoint import WeightSource


def join_patches(
    graph: GraphBuilder, states: ir.Value, patches: int, shape: ConnectorShape
) -> ir.Value:
    """Join squares of patches to one token each (pixel shuffle of Idefics3).

    Args:
        graph: where to build.
        states: the patches of a square image, ``[I, patches, D]``.
        patches: their number.
        shape: ``shuffle`` is the edge ``s`` of a square in patches.

    Returns:
        ``[I, patches / s², D · s²]``; unchanged for an edge of 1.
    """
    edge = shape.shuffle
    if edge == 1:
        return states
    side, width = isqrt(patches), shape.in_features

    def swapped(x: ir.Value, sizes: list[int]) -> ir.Value:
        reshaped = graph.op("Reshape", x, graph.constant([0, *sizes]))
        return graph.op("Transpose", reshaped, perm=(0, 2, 1, 3))

    # [I, w/s, h, D·s], then [I, h/s, w/s, D·s²]
    rows = swapped(states, [side, side // edge, width * edge])
    squares = swapped(rows, [side // edge, side // edge, width * edge**2])
    return graph.op("Reshape", squares, graph.constant([0, -1, shape.joined_features]))


def connect(
    graph: GraphBuilder, weights: WeightSource, states: ir.Value, shape: ConnectorShape, act: str
) -> ir.Value:
    """Map features ``[I, K, F]`` to the decoder's width; ``act`` stands between two linear layers."""
    if shape.norm:
        states = layer_norm(graph, weights, states, f"{CONNECTOR}.{NORM}", NORM_EPS)
    for number, name in enumerate(shape.layers):
        if number:
            states = activation(graph, states, act)
        states = linear(graph, weights, states, f"{CONNECTOR}.{name}", shape.bias)
    return states
