"""Makes ``serve/backends/onnxruntime/largest_bytes.onnx``: ``python -m tests.serve.largest_bytes``."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.graph.builder import GraphBuilder, Target
from export.graph.integer_linear import quantised_matmul
from serve.backends.onnxruntime.vnni_check import GRAPH, LARGEST, WIDTH
from tests.export.memory_weights import MemoryWeights

NAME = "model.layer"


def largest_bytes() -> bytes:
    """``x [1, n] → y [1, n]``: the sum of x times 127 in each column; ones become bytes of 255."""
    weights = MemoryWeights({f"{NAME}.weight": np.full((WIDTH, WIDTH), LARGEST, np.float32)})
    graph = GraphBuilder("bytes", Target(precision="int8"))
    x = graph.input("x", ir.DataType.FLOAT, (1, WIDTH))
    y = quantised_matmul(graph, weights, x, NAME, 8)
    graph.output("y", y, ir.DataType.FLOAT, (1, WIDTH))
    return ir.serde.serialize_model(graph.model()).SerializeToString(deterministic=True)


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "serve" / "backends" / "onnxruntime" / GRAPH
    path.write_bytes(largest_bytes())
