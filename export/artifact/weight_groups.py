"""Which inputs of a layer share a scale in 4 bits."""

GROUPS = (64, 32, 16)  # inputs with one scale, the largest first; ONNX Runtime takes no fewer


def group_of(width: int) -> int | None:
    """Inputs that share a scale; none where no group divides the width."""
    return next((group for group in GROUPS if width % group == 0), None)
