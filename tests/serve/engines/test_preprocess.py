"""Preprocessing equals the Hugging Face processors', for every picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil
from transformers.image_utils import load_image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from comp.checkpoints.image_settings import CropSize, ImageProcessing, ImageSize
from comp.data.images import read_image
from comp.errors import CompExportError
from serve.engines.preprocess import model_view, preprocess

SIDE = 56


def settings_of(processor) -> ImageProcessing:
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    crop = dict(processor.crop_size)
    return ImageProcessing(
        do_pad=bool(getattr(processor, "do_pad", None)),
        size=ImageSize(**size),
        resample=int(processor.resample),
        do_center_crop=processor.do_center_crop,
        crop_size=CropSize(height=crop["height"], width=crop["width"]),
        rescale_factor=processor.rescale_factor,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )


def clip(**changes):
    return CLIPImageProcessorPil(
        **{"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **changes}
    )


def photo(width=97, height=71, mode="RGB"):
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def palette_with_transparency():
    return saved(photo().quantize(32), transparency=3)


PICTURES = {
    "rgb": lambda: saved(photo()),
    "rgba": lambda: saved(photo(mode="RGBA")),
    "grey": lambda: saved(photo(mode="L")),
    "grey with alpha": lambda: saved(photo(mode="RGBA").convert("LA")),
    "palette": lambda: saved(photo().quantize(32)),
    "palette with transparency": palette_with_transparency,
    "one bit": lambda: saved(photo(mode="1")),
    "cmyk": lambda: saved(photo(mode="CMYK"), "JPEG", quality=95),
    "ycbcr jpeg": lambda: saved(photo(), "JPEG"),
    "gif": lambda: saved(photo(), "GIF"),
    "webp": lambda: saved(photo(mode="RGBA"), "WEBP", lossless=True),
    "16-bit tiff of grey": lambda: saved(photo(mode="L"), "TIFF"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_equal_the_hugging_face_processor(name):
    data = PICTURES[name]()
    processor = clip()
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
    result = preprocess([data], settings_of(processor))
    assert result.dtype == np.float32
    assert result.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_the_hugging_face_loader(orientation, tmp_path):
    picture = photo(120, 60)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    picture.save(path, exif=exif, quality=95)
    processor = clip()
    expected = processor(load_image(str(path)), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess([path], settings_of(processor)), expected, atol=1e-5)
    assert read_image(path).size == ((60, 120) if orientation >= 5 else (120, 60))


@pytest.mark.parametrize(
    "size", [(97, 71), (71, 97), (300, 57), (20, 30), (1, 1), (56, 56), (57, 56)]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": {"height": 60, "width": 64}},
        {"size": {"shortest_edge": 40}},  # smaller than the crop: the rest is zero
        {"size": {"shortest_edge": 41}, "crop_size": {"height": 57, "width": 52}},
        {"resample": 2},
    ],
)
def test_pixels_equal_for_other_sizes_and_settings(size, changes):
    processor = clip(**changes)
    picture = photo(*size)
    expected = processor(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess([picture], settings_of(processor)), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(97, 71), (71, 97), (56, 56)])
def test_padding_to_a_square_equals_llava(size):
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_pad=True
    )
    picture = photo(*size)
    expected = processor(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess([picture], settings_of(processor)), expected, atol=1e-5)


def test_images_of_different_sizes_are_batched():
    processor = clip()
    pictures = [photo(80, 60), photo(60, 99), photo(mode="L")]
    expected = processor(pictures, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess(pictures, settings_of(processor)), expected, atol=1e-5)


def test_sixteen_bit_grey_keeps_its_levels():
    """Pillow's own conversion saturates; the expected values are those of the picture in 8 bits."""
    grey = np.asarray(photo(mode="L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    processor = clip()
    expected = processor(Image.fromarray(grey), return_tensors="np")["pixel_values"]
    result = preprocess([saved(wide)], settings_of(processor))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_model_view_shows_the_model_input():
    processor = clip()
    picture = photo(120, 60)
    view = model_view(picture, settings_of(processor))
    assert view.size == (SIDE, SIDE)
    np.testing.assert_allclose(
        preprocess([view], settings_of(processor)),
        preprocess([picture], settings_of(processor)),
        atol=1e-5,
    )


def png_of(width, height):
    """Return a PNG header with this number of pixels, and no pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a picture"),
        (b"hello, I am a text", "not a picture"),
        (lambda: saved(photo())[:200], "damaged"),
        (lambda: saved(photo(), "JPEG")[:500], "damaged"),
        (lambda: png_of(20000, 20000), "too large"),
        (lambda: png_of(10000, 9999), "too large"),
        (lambda: png_of(0, 10), "image of"),
        (lambda: Image.new("RGB", (0, 5)), "empty"),
        (lambda: photo(1, 30000), "too narrow"),
        ("nowhere/none.png", "cannot read image nowhere/none.png"),
        ("bad\0name.png", "cannot read image"),
        (".", "cannot read image"),
    ],
)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_refused_in_one_line(data, words):
    source = data() if callable(data) else data
    with pytest.raises(CompExportError, match=words) as caught:
        preprocess([source], settings_of(clip(size={"shortest_edge": 336})))
    assert "\n" not in str(caught.value)


def test_exif_is_applied_as_in_pillow():
    picture = photo(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(expected))
