"""Compute the size of a resized picture, as transformers does."""

from comp.checkpoints.image_settings import ImageSize
from comp.data.images import MAX_PIXELS
from comp.errors import CompExportError


def resized_size(width: int, height: int, size: ImageSize) -> tuple[int, int]:
    """Width and height of a picture resized to ``size``, in pixels.

    Raises:
        CompExportError: it would have no pixels or too many.
    """
    if size.shortest_edge is not None and size.longest_edge is not None:
        target = _bounded(width, height, size.shortest_edge, size.longest_edge)
    elif size.shortest_edge is not None:
        target = _by_shorter_edge(width, height, size.shortest_edge)
    elif size.max_height is not None and size.max_width is not None:
        scale = min(size.max_height / height, size.max_width / width)
        target = int(width * scale), int(height * scale)
    elif size.height is not None and size.width is not None:
        target = size.width, size.height
    else:
        raise CompExportError(
            "the manifest's image_processor.size has neither shortest_edge nor height and width: "
            "export the artifact again with `comp-export onnx --force`"
        )
    if not 0 < target[0] * target[1] <= MAX_PIXELS:
        raise CompExportError(
            f"image of {width}x{height} pixels is too narrow: resized it would have "
            f"{target[0]}x{target[1]}; crop it"
        )
    return target


def _by_shorter_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    # int(), not round(): as transformers computes the longer edge.
    longer = int(edge * max(width, height) / min(width, height))
    return (edge, longer) if width <= height else (longer, edge)


def _bounded(width: int, height: int, edge: int, longest: int) -> tuple[int, int]:
    """Resize by the shorter edge, unless the longer one would exceed ``longest``."""
    shorter, longer = min(width, height), max(width, height)
    exact: float = edge
    if longer / shorter * edge > longest:
        exact = longest * shorter / longer
        edge = round(exact)
    if edge == shorter:
        return width, height
    if width < height:
        return edge, int(exact * height / width)
    return int(exact * width / height), edge
