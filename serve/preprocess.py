"""From pictures to ``pixel_values``, equal to the Hugging Face image processors of LLaVA."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.errors import CompExportError
from comp.images import MAX_PIXELS, ImageSource, read_image
from export.manifest import ImageProcessing


def preprocess(images: Sequence[ImageSource], settings: ImageProcessing) -> NDArray[np.float32]:
    """Read, pad, resize, crop, rescale and normalise, in the order of the Hugging Face processors.

    Args:
        images: pictures as ``comp.images.read_image`` takes them.
        settings: the checkpoint's image processor, from the manifest.

    Returns:
        ``pixel_values [I, 3, H, W]``.

    Raises:
        CompExportError: for pictures that cannot be read or have an impossible shape.
    """
    planes = []
    for source in images:
        picture = read_image(source)
        if settings.do_pad:
            picture = _pad_to_square(picture, settings.image_mean)
        if settings.do_resize:
            picture = _resize(picture, settings)
        planes.append(_numbers(picture, settings))
    return np.ascontiguousarray(np.stack(planes))


def model_view(source: ImageSource, settings: ImageProcessing) -> Image.Image:
    """The part of a picture that the model sees, as an RGB picture of the model's size."""
    picture = read_image(source)
    if settings.do_pad:
        picture = _pad_to_square(picture, settings.image_mean)
    if settings.do_resize:
        picture = _resize(picture, settings)
    pixels = np.asarray(picture).transpose(2, 0, 1)
    if settings.do_center_crop and settings.crop_size is not None:
        pixels = _center_crop(pixels, settings.crop_size.height, settings.crop_size.width)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _pad_to_square(picture: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """Centre on a square ground of the mean colour (``LlavaImageProcessor``)."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    if side * side > MAX_PIXELS:
        raise CompExportError(
            f"image of {width}x{height} pixels is too long to be padded to a square: crop it"
        )
    red, green, blue = (int(value * 255) for value in mean)
    ground = Image.new("RGB", (side, side), (red, green, blue))
    ground.paste(picture, ((side - width) // 2, (side - height) // 2))
    return ground


def _resize(picture: Image.Image, settings: ImageProcessing) -> Image.Image:
    width, height = picture.size
    size = settings.size
    if size.shortest_edge is not None:
        # int(), not round(): as the Hugging Face processors compute the longer edge.
        longer = int(size.shortest_edge * max(width, height) / min(width, height))
        upright = width <= height
        target = (size.shortest_edge, longer) if upright else (longer, size.shortest_edge)
    elif size.height is not None and size.width is not None:
        target = (size.width, size.height)
    else:
        raise CompExportError(
            "the manifest's image_processor.size has neither shortest_edge nor height and width: "
            "export the artifact again with `comp-export onnx --force`"
        )
    if target[0] * target[1] > MAX_PIXELS:
        raise CompExportError(
            f"image of {width}x{height} pixels is too narrow: resized it would have "
            f"{target[0]}x{target[1]}; crop it"
        )
    return picture.resize(target, Image.Resampling(settings.resample))


def _numbers(picture: Image.Image, settings: ImageProcessing) -> NDArray[np.float32]:
    """Crop, rescale, normalise one RGB picture to ``[3, H, W]``."""
    pixels = np.asarray(picture).transpose(2, 0, 1)
    if settings.do_center_crop and settings.crop_size is not None:
        pixels = _center_crop(pixels, settings.crop_size.height, settings.crop_size.width)
    values = pixels.astype(np.float32)
    if settings.do_rescale:
        # In double precision, then rounded once: bit for bit what transformers computes.
        values = (pixels.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.do_normalize:
        mean = np.array(settings.image_mean, dtype=np.float32)[:, None, None]
        std = np.array(settings.image_std, dtype=np.float32)[:, None, None]
        values = (values - mean) / std
    return values


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Cut the middle ``[3, height, width]`` out; what lies outside the picture is zero."""
    _, rows, columns = pixels.shape
    padded = pixels
    top, left = (rows - height) // 2, (columns - width) // 2
    if top < 0 or left < 0:
        tall, wide = max(height, rows), max(width, columns)
        padded = np.zeros((3, tall, wide), dtype=pixels.dtype)
        above, before = -(-(tall - rows) // 2), -(-(wide - columns) // 2)
        padded[:, above : above + rows, before : before + columns] = pixels
        top, left = top + above, left + before
        top, left = max(0, top), max(0, left)
    return padded[:, top : top + height, left : left + width]
