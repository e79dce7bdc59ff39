"""Linear layers and activations."""

import math

import numpy as np
import onnx_ir as ir

from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.integer_linear import bits_of, quantised_matmul
from export.weights.checkpoint import WeightSource

SQRT_HALF = math.sqrt(0.5)
TANH_SCALE = math.sqrt(2 / math.pi)
QUICK_GELU = 1.702


def linear(
    graph: GraphBuilder, weights: WeightSource, x: ir.Value, name: str, bias: bool = False
) -> ir.Value:
    """``x [..., in] → [..., out]`` with the tensors ``name.weight [out, in]`` and ``name.bias``.

    The weight is stored transposed: runtimes pack ``MatMul`` operands best in that layout.
    """
    out_features, in_features = weights.shape(f"{name}.weight")
    bits = bits_of(graph, name, in_features)
    if bits is not None:
        y = quantised_matmul(graph, weights, x, name, bits)
        return graph.op("Add", y, vector(graph, weights, f"{name}.bias")) if bias else y
    matrix = graph.weight(
        f"{name}.weight",
        (in_features, out_features),
        lambda: weights.read(f"{name}.weight").T,
    )
    y = graph.op("MatMul", x, matrix)
    return graph.op("Add", y, vector(graph, weights, f"{name}.bias")) if bias else y


def vector(graph: GraphBuilder, weights: WeightSource, name: str) -> ir.Value:
    """Declare a tensor without changes: a bias, a norm's scale, an embedding."""
    return graph.weight(name, weights.shape(name), lambda: weights.read(name))


def activation(graph: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """``gelu`` (exact), ``gelu_pytorch_tanh``, ``quick_gelu``, ``silu`` or ``relu``."""
    if name == "relu":
        return graph.op("Relu", x)
    if name in ("silu", "quick_gelu"):
        slope = 1.0 if name == "silu" else QUICK_GELU
        if graph.target.fused:
            return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=slope)
        gate = x if name == "silu" else graph.op("Mul", x, graph.scalar(slope))
        return graph.op("Mul", x, graph.op("Sigmoid", gate))
    if name == "gelu_pytorch_tanh":
        cube = graph.op("Mul", graph.op("Mul", x, x), x)
        inner = graph.op("Add", x, graph.op("Mul", cube, graph.scalar(0.044715)))
        gate = graph.op("Tanh", graph.op("Mul", inner, graph.scalar(TANH_SCALE)))
    elif graph.target.fused:
        return graph.op("Gelu", x, domain=MICROSOFT)
    else:
        gate = graph.op("Erf", graph.op("Mul", x, graph.scalar(SQRT_HALF)))
    half = graph.op("Mul", x, graph.scalar(0.5))
    return graph.op("Mul", half, graph.op("Add", gate, graph.scalar(1.0)))


def cast_to_graph(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """Cast a float32 value to the graph's precision."""
    return cast(graph, x, graph.target.dtype) if graph.target.computed != "float32" else x


def cast_to_float32(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """Cast a value of the graph's precision to float32."""
    return cast(graph, x, ir.DataType.FLOAT) if graph.target.computed != "float32" else x


def cast(graph: GraphBuilder, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    return graph.op("Cast", x, to=int(dtype))


def axis_size(graph: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    """The size of one axis, int64 ``[1]``, computed from the shape alone."""
    return graph.op("Shape", x, start=axis, end=axis + 1)


def split_heads(graph: GraphBuilder, x: ir.Value, head_dim: int, heads: int) -> ir.Value:
    """``[B, N, H·hd] → [B, N, H, hd]``."""
    return graph.op("Reshape", x, graph.constant(np.array([0, 0, heads, head_dim])))
