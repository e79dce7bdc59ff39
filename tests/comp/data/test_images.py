"""Files other than pictures of a sensible size are refused by name, before they are opened or decoded."""

import io
import os
import resource
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from comp.data.icons import icon_sizes
from comp.data.images import MAX_BYTES, MAX_SIDE, STRIPE, check_image, read_image
from comp.errors import CompExportError
from comp.utils.files import read_regular


def noise(width=60, height=40, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, *chunks):
    """Return a complete grey PNG whose pixels compress to almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer, data = zlib.compressobj(9), b""
    row = bytes(1 + width)
    for _ in range(height):
        data += packer.compress(row)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data + packer.flush()))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def icon(data, width=16, height=16):
    """Return an ICO whose directory can give another size than its picture has."""
    entry = struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, len(data), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + data


def refused(source, words, **limits):
    with pytest.raises(CompExportError, match=words) as caught:
        read_image(source, **limits)
    assert "\n" not in str(caught.value)


def test_special_files_are_refused_unopened(tmp_path, monkeypatch):
    pipe, place = tmp_path / "pipe.png", tmp_path / "socket.png"
    os.mkfifo(pipe)
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("socket.png")
        refused(place, "socket.png: it is a socket, not a file")
    refused(pipe, "pipe.png: it is a named pipe, not a file; name an image file")
    refused(tmp_path, "it is a folder")
    refused("/dev/zero", "image /dev/zero: it is a device")
    link = tmp_path / "link.png"
    link.symlink_to(pipe)
    refused(link, "link.png: it is a named pipe")


def test_a_pipe_that_replaces_a_file_is_refused(tmp_path, monkeypatch):
    """The pipe appears between the check and the opening: neither waits for a writer."""
    path = tmp_path / "was.png"
    path.write_bytes(saved(noise()))
    looked = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: looked)
    refused(path, "it is a named pipe")


def test_files_are_read_up_to_a_limit(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: no disk is used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, rf"large.png is too large \({MAX_BYTES + 1} bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    path.write_bytes(bytes(11))
    assert read_regular(path, "file", "shorten it", 11) == bytes(11)
    with pytest.raises(CompExportError, match=r"too large \(11 bytes, 10 at most\): shorten it"):
        read_regular(path, "file", "shorten it", 10)
    refused(saved(noise()), "too large", max_bytes=100)


def test_files_that_report_no_size_are_limited():
    """Files of /proc report a size of zero."""
    with pytest.raises(CompExportError, match=r"too large \(11 bytes, 10 at most\)"):
        read_regular(Path("/proc/self/status"), "file", "take another one", 10)


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (4_000_000, 1)])
def test_oversized_pictures_are_refused(size):
    refused(png(*size), f"too large .{size[0]}x{size[1]} pixels; .* {MAX_SIDE} pixels a side")
    refused(Image.new("L", size), "too large")


def test_an_icon_is_judged_by_its_embedded_picture():
    assert icon_sizes(icon(png(3, 5))) == [(3, 5)]
    assert icon_sizes(png(3, 5)) == []
    assert icon_sizes(icon(b"")) == []
    assert icon_sizes(icon(struct.pack("<Iii", 40, 6, -14))) == [(6, 7)]
    many = saved(noise(64, 64), "ICO", sizes=[(16, 16), (32, 32)])
    assert sorted(icon_sizes(many)) == [(16, 16), (32, 32)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(icon(png(12_000, 12_000)), "too large .12000x12000 pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_compressed_text_of_gigabytes_is_refused():
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000)))
    refused(png(4, 4, *[text] * 120), "damaged .Too much memory used in text chunks")


def test_a_header_is_judged_without_its_pixels(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png(300, 200)[:60])  # no pixel is there
    check_image(path, max_pixels=60_000)
    with pytest.raises(CompExportError, match=r"one.png is too large .300x200"):
        check_image(path, max_pixels=59_999)
    refused(path, "damaged")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "JPEG", "JPEG2000", "WEBP"])
def test_image_modes_are_read_as_in_transformers(mode, kind):
    try:
        data = saved(noise(mode=mode), kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"no {kind} is {mode}")
    picture = Image.open(io.BytesIO(data))
    expected = convert_to_rgb(picture)
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(expected))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        assert np.array_equal(np.asarray(read_image(data)), np.asarray(load_image(picture)))


def test_whitening_in_stripes_equals_whitening_at_once():
    picture = noise(2000, 2 * STRIPE // 2000 + 7, "RGBA")
    expected = np.asarray(convert_to_rgb(picture))
    assert np.array_equal(np.asarray(read_image(picture)), expected)


def test_colours_without_a_conversion_are_named():
    refused(saved(Image.new("LAB", (8, 8)), "TIFF"), "the colours of LAB, .* save it as RGB")


@pytest.mark.slow
def test_damaged_pictures_are_read_or_refused():
    """Any changed bytes give no other error and no warning."""
    chosen = np.random.default_rng(7)
    whole = [
        saved(noise(mode=mode), kind)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000")
        for mode in (("L", "RGB") if kind in ("JPEG", "PPM") else ("L", "RGB", "RGBA"))
    ]
    outcomes = []
    for number in range(1500):
        data = bytearray(whole[number % len(whole)])
        for _ in range(chosen.integers(1, 6)):
            place = int(chosen.integers(min(len(data), 200)))
            data[place] = int(chosen.integers(256))
        if chosen.random() < 0.2:
            del data[int(chosen.integers(len(data))) :]
        try:
            outcomes.append(read_image(bytes(data)).mode)
        except CompExportError as error:
            outcomes.append("refused" if len(str(error).splitlines()) == 1 else str(error))
    assert set(outcomes) == {"RGB", "refused"}
