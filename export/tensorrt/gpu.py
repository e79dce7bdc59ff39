"""Detect the NVIDIA GPU and its compute capability."""

from functools import cache

from comp.utils.install import install_hint


def gpu_capability() -> str | None:
    """The compute capability of the first GPU, such as ``8.9``; ``None`` without GPU or driver."""
    return _look()[0]


def why_no_gpu() -> str:
    """Return the reason why ``gpu_capability`` is ``None``, with the remedy."""
    return _look()[1]


@cache
def _look() -> tuple[str | None, str]:
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None, (
            f"the package cuda-bindings is not installed: {install_hint('tensorrt')}, or with the extra "
            "tensorrt-rtx"
        )
    attribute = runtime.cudaDeviceAttr
    status, count = runtime.cudaGetDeviceCount()
    parts = []
    for name in (
        attribute.cudaDevAttrComputeCapabilityMajor,
        attribute.cudaDevAttrComputeCapabilityMinor,
    ):
        if status == runtime.cudaError_t.cudaSuccess and count:
            status, value = runtime.cudaDeviceGetAttribute(name, 0)
            parts.append(value)
    if status != runtime.cudaError_t.cudaSuccess or not count:
        return None, f"there is none here, or no driver for it (CUDA says {status.name})"
    return f"{parts[0]}.{parts[1]}", ""
