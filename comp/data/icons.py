"""The sizes of the pictures in an ICO file: Pillow decodes one of them while it opens the file."""

import struct

ICO = b"\0\0\1\0"
PNG = b"\x89PNG\r\n\x1a\n"
_ENTRY = 16  # bytes


def icon_sizes(data: memoryview | bytes) -> list[tuple[int, int]]:
    """Read the sizes that the pictures themselves have; the file's directory may say others.

    Args:
        data: of a file.

    Returns:
        ``(width, height)`` of each picture whose header is there; nothing for another format.
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
    """The size of a PNG, or of a bitmap with its mask below it, which counts as height."""
    if header.startswith(PNG):
        return struct.unpack(">II", header[16:24]) if len(header) == 24 else None
    if len(header) < 12:
        return None
    if header[:4] == b"\x0c\0\0\0":  # the oldest bitmaps
        width, height = struct.unpack("<HH", header[4:8])
    else:
        width, height = struct.unpack("<ii", header[4:12])
    return abs(width), abs(height) // 2
