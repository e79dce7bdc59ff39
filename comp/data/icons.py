"""Read the sizes of the pictures in an ICO file before Pillow opens it, which decodes one of them."""

import struct

ICO = b"\0\0\1\0"
PNG = b"\x89PNG\r\n\x1a\n"
_ENTRY = 16  # bytes


def icon_sizes(data: memoryview | bytes) -> list[tuple[int, int]]:
    """Return the sizes in the headers of the pictures; the file's directory may contradict them.

    Args:
        data: bytes of a file.

    Returns:
        ``(width, height)`` of each picture with a complete header; empty for other formats.
    """
    if bytes(data[:4]) != ICO or len(data) < 6:
        return []
    (count,) = struct.unpack_from("<H", data, 4)
    sizes = []
    for number in range(count):
        entry = 6 + number * _ENTRY
        if entry + _ENTRY > len(data):
            break
        (start,) = struct.unpack_from("<I", data, entry + 12)
        size = _size(bytes(data[start : start + 24]))
        if size is not None:
            sizes.append(size)
    return sizes


def _size(header: bytes) -> tuple[int, int] | None:
    """Return the size of a PNG, or of a bitmap, whose height field includes the mask below it."""
    if header.startswith(PNG):
        return struct.unpack(">II", header[16:24]) if len(header) == 24 else None
    if len(header) < 12:
        return None
    if header[:4] == b"\x0c\0\0\0":  # the oldest bitmaps
        width, height = struct.unpack("<HH", header[4:8])
    else:
        width, height = struct.unpack("<ii", header[4:12])
    return abs(width), abs(height) // 2
