"""Whether there is an NVIDIA GPU, and which."""

from functools import cache
from typing import Any


@cache
def gpu_capability() -> str | None:
    """The compute capability of the first GPU, such as ``8.9``; none without GPU or driver."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    ok = runtime.cudaError_t.cudaSuccess
    status, count = runtime.cudaGetDeviceCount()
    if status != ok or not count:
        return None
    attribute = runtime.cudaDeviceAttr
    parts: list[Any] = []
    for name in (
        attribute.cudaDevAttrComputeCapabilityMajor,
        attribute.cudaDevAttrComputeCapabilityMinor,
    ):
        status, value = runtime.cudaDeviceGetAttribute(name, 0)
        if status != ok:
            return None
        parts.append(value)
    return f"{parts[0]}.{parts[1]}"
