"""Drawing which image tokens a compressed model still looks at."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.llava_manifest import VisionShape

DIM = 0.82  # how far a dropped patch fades
PAPER = 240.0  # the grey it fades to


@dataclass(frozen=True)
class KeptPicture:
    """One drop place: the picture with dropped patches dimmed, and the numbers beside it."""

    after_layer: int
    picture: Image.Image
    kept: int
    of: int


def kept_picture(
    view: Image.Image, vision: VisionShape, kept: NDArray[np.int64], after_layer: int
) -> KeptPicture:
    """Dim what was dropped.

    Args:
        view: what the model sees, square, ``image_size`` pixels wide.
        vision: the artifact's vision shape.
        kept: which of the image's tokens ``0..T-1`` stayed.
        after_layer: decoder blocks before the drop.
    """
    grid = vision.image_size // vision.patch_size
    # With the strategy "full" the class token comes first; it has no place in the picture.
    patches = kept - 1 if vision.select_strategy == "full" else kept
    stays = np.zeros(grid * grid, dtype=bool)
    stays[patches[patches >= 0]] = True
    mask = np.kron(stays.reshape(grid, grid), np.ones((vision.patch_size,) * 2, dtype=bool))
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32)  # [H, W, 3]
    side = mask.shape[0]  # image_size, unless the patches leave a margin
    shown = np.zeros(pixels.shape[:2], dtype=bool)
    shown[:side, :side] = mask
    grey = pixels.mean(axis=-1, keepdims=True)
    faded = (1 - DIM) * grey + DIM * PAPER
    drawn = np.where(shown[..., None], pixels, faded).round().astype(np.uint8)
    return KeptPicture(after_layer, Image.fromarray(drawn), int(kept.size), vision.image_tokens)


def data_uri(picture: Image.Image) -> str:
    """A picture as a ``data:`` address: the page fetches nothing."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WEBP", quality=96)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
