"""Layer norm and RMS norm, alone or after a residual addition; unit-length embeddings."""

import numpy as np
import onnx_ir as ir

from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.linear import cast_to_float32, cast_to_graph, linear, vector
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


def embed(
    graph: GraphBuilder,
    weights: WeightSource,
    pooled: ir.Value,
    projection: str,
    output: str,
    width: int,
    bias: bool = False,
) -> None:
    """Project ``pooled [B, 1, D]`` and declare the output ``[B, width]`` float32, of length 1."""
    embeds = cast_to_float32(graph, linear(graph, weights, pooled, projection, bias))
    flat = graph.op("Reshape", embeds, graph.constant([-1, width]))
    graph.output(output, _unit(graph, flat, 1), ir.DataType.FLOAT, ("batch", width))


def unit_rows(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """``[B, N, d]`` with rows of length 1, in float32."""
    return _unit(graph, cast_to_float32(graph, x), 2)


def _unit(graph: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    square = graph.op("ReduceSum", graph.op("Mul", x, x), graph.constant([axis]), keepdims=1)
    floor = graph.constant(NORM_FLOOR, np.float32)
    return graph.op("Div", x, graph.op("Max", graph.op("Sqrt", square), floor))
