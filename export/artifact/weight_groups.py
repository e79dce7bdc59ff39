"""Groups of a layer's inputs that share a scale in 4 bits."""

GROUPS = (64, 32, 16)  # inputs with one scale, the largest first; ONNX Runtime takes no fewer


def group_of(width: int) -> int | None:
    """Return the number of inputs that share a scale; ``None`` if no group size divides the width."""
    return next((group for group in GROUPS if width % group == 0), None)
