"""Linear layers with integer weights (``export.graph.integer_rounding``).

``onnxruntime`` flavour: 8 bits as ``MatMulIntegerToFloat``; the layer's input is rounded to 8 bits too,
with one scale for the whole tensor, at each run (dynamic quantisation). 4 bits as ``MatMulNBits``, which
rounds inputs by group. ``standard`` flavour: ``DequantizeLinear`` before ``MatMul``; inputs stay floats:
OpenVINO fuses the two and quantises inputs itself.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from comp.checkpoints.tying import LM_HEAD
from export.artifact.weight_groups import group_of
from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.integer_rounding import Bits, Rounding, packed_nibbles
from export.weights.checkpoint import WeightSource

SCALES = ".scales"  # suffix of a matrix's name
INT8_ACCURACY = 4  # accuracy_level of MatMulNBits: inputs become int8
WHOLE_BYTES = ("vision_encoder", "vision_model")  # graphs that keep 8 bits


def bits_of(graph: GraphBuilder, name: str, width: int) -> Bits | None:
    """Bits of a layer's weights in this graph; ``None`` if they are not quantised.

    In 4 bits, these layers keep 8: the output layer, image towers, and widths that no group divides.
    """
    bits = graph.target.weight_bits
    if bits == 4 and (
        graph.name in WHOLE_BYTES or f"{name}.weight" == LM_HEAD or group_of(width) is None
    ):
        return 8
    return bits


def quantised_matmul(
    graph: GraphBuilder, weights: WeightSource, x: ir.Value, name: str, bits: Bits
) -> ir.Value:
    """``x [..., in] → [..., out]`` with the tensor ``name.weight [out, in]`` in 8 or 4 bits."""
    tensor = f"{name}.weight"
    known = graph.target.integers.get(tensor) if bits == 4 else None
    rounding = Rounding(lambda: weights.read(tensor), bits, known)
    out_features, in_features = weights.shape(tensor)
    if graph.target.fused:
        if bits == 8:
            return _integers(graph, x, tensor, (in_features, out_features), rounding)
        return _groups(graph, x, tensor, (in_features, out_features), rounding)
    return _dequantised(graph, x, tensor, (in_features, out_features), rounding, bits)


def _integers(
    graph: GraphBuilder, x: ir.Value, name: str, shape: tuple[int, int], rounding: Rounding
) -> ir.Value:
    def quantised() -> tuple[ir.Value, ...]:
        return graph.ops("DynamicQuantizeLinear", x, outputs=3)

    inputs, scale, zero = graph.shared(("quantised", x), quantised)
    matrix = graph.weight(name, shape, lambda: rounding.values().T, np.dtype(np.int8))
    scales = graph.weight(
        f"{name}{SCALES}", shape[1:], lambda: rounding.scales()[:, 0], np.dtype(np.float32)
    )
    return graph.op("MatMulIntegerToFloat", inputs, matrix, scale, scales, zero, domain=MICROSOFT)


def _groups(
    graph: GraphBuilder, x: ir.Value, name: str, shape: tuple[int, int], rounding: Rounding
) -> ir.Value:
    width, rows = shape
    group = group_of(width)
    assert group is not None
    blocks = width // group
    matrix = graph.weight(
        name,
        (rows, blocks, group // 2),
        lambda: packed_nibbles(rounding.values()).reshape(rows, blocks, group // 2),
        np.dtype(np.uint8),
    )
    scales = graph.weight(f"{name}{SCALES}", (rows, blocks), rounding.scales, np.dtype(np.float32))
    return graph.op(
        "MatMulNBits", x, matrix, scales, domain=MICROSOFT,
        K=width, N=rows, bits=4, block_size=group, accuracy_level=INT8_ACCURACY,
    )  # fmt: skip


def _dequantised(
    graph: GraphBuilder,
    x: ir.Value,
    name: str,
    shape: tuple[int, int],
    rounding: Rounding,
    bits: Bits,
) -> ir.Value:
    width, rows = shape
    kind = np.dtype(np.int8 if bits == 8 else ml_dtypes.int4)
    matrix = graph.weight(name, shape, lambda: rounding.values().T, kind)
    if bits == 8:
        scales = graph.weight(
            f"{name}{SCALES}", (rows,), lambda: rounding.scales()[:, 0], np.dtype(np.float32)
        )
        whole = graph.op("DequantizeLinear", matrix, scales, axis=1)
    else:
        group = group_of(width)
        assert group is not None
        scales = graph.weight(
            f"{name}{SCALES}",
            (width // group, rows),
            lambda: rounding.scales().T,
            np.dtype(np.float32),
        )
        whole = graph.op("DequantizeLinear", matrix, scales, axis=0, block_size=group)
    return graph.op("MatMul", x, whole)
