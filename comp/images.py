"""Reading pictures: upright, RGB, and refused when damaged or dangerously large."""

import io
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from comp.errors import CompExportError

ImageSource: TypeAlias = "Image.Image | str | Path | bytes"

MAX_PIXELS = (
    89_478_485  # 256 MiB of RGB: Pillow's own line between a photo and a decompression bomb
)
# Formats that Pillow decodes by itself; EPS and WMF would start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError)


def read_image(source: ImageSource) -> Image.Image:
    """Read a picture as the model should see it: EXIF orientation applied, RGB, on white.

    Equal to ``transformers``: orientation as in its ``load_image``, transparency composited onto
    white as in its image processors. 16-bit greyscale is the exception: Pillow's conversion, which
    ``transformers`` uses, saturates nearly all of it to white; here its upper byte is taken.

    Args:
        source: a file name, the bytes of a file, or a Pillow image.

    Raises:
        CompExportError: for a missing, unreadable, damaged, empty or too large picture.
    """
    if isinstance(source, Image.Image):
        name = f"image ({source.mode}, {source.width}x{source.height})"
        return _decoded(source, name)
    if isinstance(source, bytes):
        name, stream = f"image of {len(source)} bytes", io.BytesIO(source)
    else:
        name, stream = f"image {source}", _opened(Path(source))
    with stream:
        try:
            with warnings.catch_warnings():
                # Sizes are judged below, by a line of ours.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(stream, formats=_formats())
        except Image.DecompressionBombError as error:
            raise _too_large(name, str(error)) from error
        except Image.UnidentifiedImageError as error:
            raise CompExportError(
                f"{name} is not a picture that can be read: use PNG, JPEG, WebP, GIF, BMP or TIFF"
            ) from error
        except _DAMAGED as error:
            raise _damaged(name, error) from error
        return _decoded(picture, name)


def _opened(path: Path) -> io.BytesIO:
    """The bytes of a file, so that no handle outlives the reading."""
    try:
        return io.BytesIO(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompExportError(f"cannot read image {path}: {reason}; name an image file") from error


def _formats() -> list[str]:
    """Those of ``FORMATS`` that this Pillow was built with."""
    Image.preinit()
    if not all(name in Image.OPEN for name in FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    width, height = picture.size
    if width < 1 or height < 1:
        raise CompExportError(
            f"{name} is empty ({width}x{height} pixels): use one with a pixel in it"
        )
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height} pixels")
    try:
        picture.load()
        return _on_white(_eight_bits(ImageOps.exif_transpose(picture)))
    except _DAMAGED as error:
        raise _damaged(name, error) from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit greyscale (modes ``I;16*``, and ``I`` as older Pillow opens it) to ``L``."""
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).astype(np.int64)
    if picture.mode == "I" and levels.size and levels.max() <= 255:
        return picture
    return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def _too_large(name: str, what: str) -> CompExportError:
    megapixels = MAX_PIXELS // 10**6
    return CompExportError(
        f"{name} is too large ({what}; {megapixels} megapixels at most): scale it down"
    )


def _damaged(name: str, error: BaseException) -> CompExportError:
    reason = str(error) or type(error).__name__
    return CompExportError(f"{name} is damaged ({reason}): save it again or use another one")
