"""Layer norm and RMS norm, alone or after a residual addition; unit-length embeddings."""

import numpy as np
import onnx_ir as ir

from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.linear import cast_to_float32, cast_to_graph, vector
from export.weights.checkpoint import WeightSource

NORM_FLOOR = 1e-12  # torch's smallest length when it normalises


def layer_norm(
    graph: GraphBuilder, weights: WeightSource, x: ir.Value, name: str, epsilon: float
) -> ir.Value:
    """``LayerNormalization`` over the last axis with scale and bias."""
    scale = vector(graph, weights, f"{name}.weight")
    bias = vector(graph, weights, f"{name}.bias")
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def add_layer_norm(
    graph: GraphBuilder,
    weights: WeightSource,
    x: ir.Value,
    residual: ir.Value,
    name: str,
    epsilon: float,
) -> tuple[ir.Value, ir.Value]:
    """``(norm(residual + x), residual + x)``.

    ONNX Runtime's SkipLayerNormalization made the tower of tiny-llava 13 % slower on a CPU.
    """
    total = graph.op("Add", residual, x)
    return layer_norm(graph, weights, total, name, epsilon), total


def rms_norm(
    graph: GraphBuilder, weights: WeightSource, x: ir.Value, name: str, epsilon: float
) -> ir.Value:
    """``x / sqrt(mean(x²) + ε) · scale`` over the last axis, the mean in float32."""
    scale = vector(graph, weights, f"{name}.weight")
    if graph.target.fused:
        return graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon)
    wide = cast_to_float32(graph, x)
    square = graph.op("Mul", wide, wide)
    mean = graph.op("ReduceMean", square, graph.constant([-1]), keepdims=1)
    root = graph.op("Sqrt", graph.op("Add", mean, graph.constant(epsilon, "float32")))
    return graph.op("Mul", cast_to_graph(graph, graph.op("Div", wide, root)), scale)


def add_rms_norm(
    graph: GraphBuilder,
    weights: WeightSource,
    x: ir.Value,
    residual: ir.Value,
    name: str,
    epsilon: float,
) -> tuple[ir.Value, ir.Value]:
    """``(norm(residual + x), residual + x)``."""
    if graph.target.fused:
        normed, total = graph.ops(
            "SkipSimplifiedLayerNormalization",
            x,
            residual,
            vector(graph, weights, f"{name}.weight"),
            outputs=(True, False, False, True),
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return normed, total
    total = graph.op("Add", residual, x)
    return rms_norm(graph, weights, total, name, epsilon), total


def unit_length(graph: GraphBuilder, x: ir.Value, width: int) -> ir.Value:
    """Normalise embeddings ``[B, 1, P]`` to length 1: ``[B, P]`` float32."""
    flat = graph.op("Reshape", cast_to_float32(graph, x), graph.constant([-1, width]))
    square = graph.op("Mul", flat, flat)
    total = graph.op("ReduceSum", square, graph.constant([1]), keepdims=1)
    floor = graph.constant(NORM_FLOOR, np.float32)
    return graph.op("Div", flat, graph.op("Max", graph.op("Sqrt", total), floor))
