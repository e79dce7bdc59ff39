"""Read pictures upright and in RGB; refuse damaged and dangerously large ones."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from comp.data.icons import icon_sizes
from comp.errors import CompExportError
from comp.utils.files import read_regular

ImageSource: TypeAlias = "Image.Image | str | Path | bytes"

MAX_PIXELS = 89_478_485  # 256 MiB of RGB: above it, Pillow warns of a decompression bomb
MAX_SIDE = 65_535  # pixels: JPEG's own limit, and more than any panorama
MAX_BYTES = 256 * 2**20  # of a file: as large as MAX_PIXELS of RGB, uncompressed
STRIPE = 2**20  # pixels
# Formats that Pillow decodes by itself; EPS and WMF would start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")
_NO_RGB = ("LAB",)  # modes that Pillow, and so ``transformers``, cannot convert to RGB
# Errors that Pillow's readers raise for data that violates its format.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_image(source: ImageSource, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Read a picture as the model needs it: EXIF orientation applied, RGB, on white.

    Equal to ``transformers``: orientation as in its ``load_image``, transparency composited onto
    white as in its image processors. The exception is 16-bit greyscale: Pillow's conversion, which
    ``transformers`` uses, saturates nearly all of it to white; here the upper byte is used.

    Only regular files are opened, and at most ``max_bytes`` of them are read. Sizes are checked before
    pixels are decoded.

    Args:
        source: a file name, the bytes of a file, or a Pillow image.
        max_bytes: largest size of a file.

    Raises:
        CompExportError: the picture is missing, unreadable, damaged, empty or too large, or no regular
            file (a folder, a pipe, a device).
    """
    if isinstance(source, Image.Image):
        name = f"image ({source.mode}, {source.width}x{source.height})"
        return _decoded(source, name)
    if isinstance(source, bytes):
        name, data = f"image of {len(source)} bytes", source
        if len(source) > max_bytes:
            raise CompExportError(f"{name} is too large ({max_bytes} at most): scale it down")
    else:
        name = f"image {source}"
        data = read_regular(Path(source), "image", "name an image file", max_bytes)
    with io.BytesIO(data) as stream:
        return _decoded(_opened(stream, name), name)


def check_image(path: Path, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a file that ``read_image`` would refuse by its type or header, without decoding pixels.

    Args:
        path: file of the picture.
        max_bytes: largest size of the file.
        max_pixels: largest number of pixels, at most ``MAX_PIXELS``.

    Raises:
        CompExportError: as ``read_image``, and for too many pixels.
    """
    data = read_regular(path, "image", "name an image file", max_bytes)
    with io.BytesIO(data) as stream:
        _opened(stream, f"image {path}", max_pixels)


def _opened(stream: io.BytesIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and check its size, without decoding it."""
    with _named_errors(name):
        for width, height in icon_sizes(stream.getbuffer()):
            _check_size(width, height, name, max_pixels)
        picture = Image.open(stream, formats=_formats())
    _check_size(*picture.size, name, max_pixels)
    return picture


def _check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    if width < 1 or height < 1:
        raise CompExportError(
            f"{name} is empty ({width}x{height} pixels): use one with a pixel in it"
        )
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_large(name, f"{width}x{height} pixels", max_pixels)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Convert Pillow's errors to errors about the picture; drop its warnings."""
    try:
        with warnings.catch_warnings():
            # Sizes are checked by our own limits; damaged metadata does not change pixels.
            warnings.simplefilter("ignore")
            yield
    except (Image.DecompressionBombError, MemoryError) as error:
        raise _too_large(name, str(error) or "more than there is memory for") from error
    except Image.UnidentifiedImageError as error:
        raise CompExportError(
            f"{name} is not a picture that can be read: use PNG, JPEG, WebP, GIF, BMP or TIFF"
        ) from error
    except _DAMAGED as error:
        raise _damaged(name, error) from error


def _formats() -> list[str]:
    """Return the ``FORMATS`` that this Pillow was built with."""
    Image.preinit()
    if not all(name in Image.OPEN for name in FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    _check_size(*picture.size, name)
    with _named_errors(name):
        picture.load()
        if picture.mode in _NO_RGB:
            raise CompExportError(
                f"{name} has the colours of {picture.mode}, which has no conversion: save it as RGB"
            )
        return _on_white(_eight_bits(ImageOps.exif_transpose(picture)))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Convert 16-bit greyscale (modes ``I;16*``, and ``I`` from older Pillow) to ``L``."""
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture)
    if picture.mode == "I" and levels.size and levels.max() <= 255:
        return picture
    return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    width, height = picture.size
    whole = Image.new("RGB", picture.size)
    rows = max(1, STRIPE // width)
    for top in range(
        0, height, rows
    ):  # stripe by stripe: all at once takes the memory of four pictures
        stripe = picture.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        white = Image.new("RGBA", stripe.size, (255, 255, 255, 255))
        whole.paste(Image.alpha_composite(white, stripe).convert("RGB"), (0, top))
    return whole


def _too_large(name: str, what: str, max_pixels: int = MAX_PIXELS) -> CompExportError:
    megapixels = max_pixels // 10**6
    return CompExportError(
        f"{name} is too large ({what}; {megapixels} megapixels and {MAX_SIDE} pixels a side at most): "
        "scale it down"
    )


def _damaged(name: str, error: BaseException) -> CompExportError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CompExportError(f"{name} is damaged ({reason}): save it again or use another one")
