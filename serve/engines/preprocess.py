"""Compute ``pixel_values`` from pictures, equal to transformers' image processors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.checkpoints.image_settings import CropSize, ImageProcessing
from comp.checkpoints.tiling import tiles_of
from comp.data.images import MAX_PIXELS, ImageSource, read_image
from comp.errors import CompExportError
from serve.engines.resizing import resized_size


def preprocess(images: Sequence[ImageSource], settings: ImageProcessing) -> NDArray[np.float32]:
    """Read, pad, resize, crop, rescale, normalise and pad, in the order of transformers.

    Args:
        images: pictures as ``comp.data.images.read_image`` takes them.
        settings: the checkpoint's image processor, from the manifest.

    Returns:
        ``pixel_values [I, 3, H, W]``; of pictures that are cut into tiles, all tiles in order.

    Raises:
        CompExportError: a picture cannot be read or has an impossible shape.
    """
    planes = [_numbers(seen, settings) for source in images for seen in _all_seen(source, settings)]
    return np.ascontiguousarray(np.stack(planes))


def model_view(source: ImageSource, settings: ImageProcessing) -> Image.Image:
    """The part of a picture that the model sees, as an RGB picture of its input size.

    Of a picture that is cut into tiles it is the last tile: the whole picture.
    """
    return model_views(source, settings)[-1]


def model_views(source: ImageSource, settings: ImageProcessing) -> list[Image.Image]:
    """All inputs of the image tower for one picture, as RGB pictures; several if it is cut into tiles."""
    return [_view(seen, settings) for seen in _all_seen(source, settings)]


def _view(seen: NDArray[np.uint8], settings: ImageProcessing) -> Image.Image:
    view = Image.fromarray(np.ascontiguousarray(seen.transpose(1, 2, 0)))
    if settings.pad_size is None:
        return view
    # Zeros of normalised values are the mean colour.
    mean = settings.image_mean if settings.do_normalize else (0.0, 0.0, 0.0)
    _check_padding(view.height, view.width, settings.pad_size)
    ground = Image.new("RGB", (settings.pad_size.width, settings.pad_size.height), _colour(mean))
    ground.paste(view, (0, 0))
    return ground


def _all_seen(source: ImageSource, settings: ImageProcessing) -> list[NDArray[np.uint8]]:
    """The tiles of a picture, or the one picture of ``_seen``, each ``[3, H, W]``."""
    if settings.tiles is None:
        return [_seen(source, settings)]
    tiles = tiles_of(read_image(source), settings.tiles, settings.resample)
    return [np.asarray(tile).transpose(2, 0, 1) for tile in tiles]


def _seen(source: ImageSource, settings: ImageProcessing) -> NDArray[np.uint8]:
    """A picture after resizing and cropping, before rescaling, ``[3, H, W]``."""
    picture = read_image(source)
    if settings.do_pad:
        picture = _pad_to_square(picture, settings.image_mean)
    if settings.do_resize:
        width, height = resized_size(picture.width, picture.height, settings.size)
        picture = picture.resize((width, height), Image.Resampling(settings.resample))
    pixels = np.asarray(picture).transpose(2, 0, 1)
    if settings.crop is not None:
        pixels = _center_crop(pixels, settings.crop.height, settings.crop.width)
    return pixels


def _pad_to_square(picture: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """Centre a picture on a square of the mean colour (``LlavaImageProcessor``)."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    if side * side > MAX_PIXELS:
        raise CompExportError(
            f"image of {width}x{height} pixels is too long to be padded to a square: crop it"
        )
    ground = Image.new("RGB", (side, side), _colour(mean))
    ground.paste(picture, ((side - width) // 2, (side - height) // 2))
    return ground


def _colour(mean: tuple[float, ...]) -> tuple[int, int, int]:
    red, green, blue = (min(max(int(value * 255), 0), 255) for value in mean)
    return red, green, blue


def _numbers(pixels: NDArray[np.uint8], settings: ImageProcessing) -> NDArray[np.float32]:
    """Rescale, normalise and pad one RGB picture ``[3, H, W]``."""
    values = pixels.astype(np.float32)
    if settings.do_rescale:
        # In double precision, then rounded once: identical to transformers.
        values = (pixels.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.do_normalize:
        mean = np.array(settings.image_mean, dtype=np.float32)[:, None, None]
        std = np.array(settings.image_std, dtype=np.float32)[:, None, None]
        values = (values - mean) / std
    if settings.pad_size is not None:
        _, rows, columns = values.shape
        _check_padding(rows, columns, settings.pad_size)
        below, right = settings.pad_size.height - rows, settings.pad_size.width - columns
        values = np.pad(values, ((0, 0), (0, below), (0, right)))
    return values


def _check_padding(rows: int, columns: int, padded: CropSize) -> None:
    if rows > padded.height or columns > padded.width:
        raise CompExportError(
            f"image of {columns}x{rows} pixels (resized) is larger than {padded.width}x"
            f"{padded.height}, which the processor pads to (pad_size): crop it"
        )


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop the middle ``[3, height, width]``; outside the picture it is zero."""
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
