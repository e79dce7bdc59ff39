"""Check that this CPU multiplies bytes exactly, which artifacts of int8 and int4 need.

ONNX Runtime multiplies unsigned by signed bytes. CPUs without VNNI (x86 before about 2019) add two such
products in 16 bits, where large ones saturate: answers would be silently wrong. So it is tested by
computing one.
"""

from functools import cache
from importlib.resources import files

import numpy as np

GRAPH = "largest_bytes.onnx"  # of tests/serve/largest_bytes.py: 127 times the sum of 64 numbers, 64 times
WIDTH, LARGEST = 64, 127
TOLERANCE = 1e-2  # of the exact sum; saturated pairs miss half


@cache
def multiplies_exactly() -> bool:
    """Multiply the largest bytes with ONNX Runtime and compare the sum."""
    from onnxruntime import InferenceSession

    graph = files("serve.backends.onnxruntime").joinpath(GRAPH).read_bytes()
    session = InferenceSession(graph, providers=["CPUExecutionProvider"])
    (products,) = session.run(None, {"x": np.ones((1, WIDTH), np.float32)})
    return bool(np.allclose(products, WIDTH * LARGEST, rtol=TOLERANCE))
