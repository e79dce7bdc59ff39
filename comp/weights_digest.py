"""A short name for the weights of a checkpoint, to tell one model from another at the same place.

It is a SHA-256 over every tensor's name, data type, shape and bytes, in the order of names: of a large
tensor over evenly spaced blocks of its bytes. So a 7B model takes a second and not a minute, and how the
tensors are spread over files does not matter. Another model, a further training step or another precision
changes it; one element written by hand into a large tensor may not.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from comp.checkpoints import INDEX, SINGLE
from comp.errors import CompExportError

SCHEME = "sampled-sha256"
BLOCK = 16 * 2**10  # bytes
BLOCKS = 16  # of a tensor that is larger than all of them; a smaller one is read whole
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor's bytes are: ``begin`` to ``end`` of a file."""

    file: Path
    kind: str
    begin: int
    end: int


def weights_digest(directory: Path) -> str | None:
    """``sampled-sha256:`` and 64 hexadecimal digits; ``None`` where there are no safetensors.

    Raises:
        CompExportError: a file is missing, truncated or no safetensors file.
    """
    tensors: dict[str, _Tensor] = {}
    for file in _files(directory):
        tensors |= _tensors(file)
    if not tensors:
        return None
    digest = hashlib.sha256()
    opened: dict[Path, BinaryIO] = {}
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"{name} {tensor.kind} {tensor.end - tensor.begin}\n".encode())
            if tensor.file not in opened:
                opened[tensor.file] = tensor.file.open("rb")
            for block in _sampled(opened[tensor.file], tensor):
                digest.update(block)
    except OSError as error:
        raise CompExportError(
            f"cannot read the weights in {directory}: {error.strerror}"
        ) from error
    finally:
        for stream in opened.values():
            stream.close()
    return f"{SCHEME}:{digest.hexdigest()}"


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        return []
    try:
        named: dict[str, str] = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        return [directory / shard for shard in sorted(set(named.values()))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CompExportError(
            f"{index} is no index of weights ({error}): download it again"
        ) from error


def _tensors(file: Path) -> dict[str, _Tensor]:
    """What the header of a safetensors file lists."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(file, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise CompExportError(
            f"cannot read {file}: {error.strerror}; download the checkpoint again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompExportError(
            f"{file} is truncated or no safetensors file ({error}): download it again"
        ) from error


def _entry(file: Path, entry: dict[str, Any], start: int, size: int) -> _Tensor:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= size - start:
        raise ValueError(f"a tensor at bytes {begin} to {end} of {size - start}")
    return _Tensor(file, f"{entry['dtype']} {entry['shape']}", start + begin, start + end)


def _sampled(stream: BinaryIO, tensor: _Tensor) -> Iterator[bytes]:
    length = tensor.end - tensor.begin
    if length <= BLOCK * BLOCKS:
        stream.seek(tensor.begin)
        yield stream.read(length)
        return
    for number in range(BLOCKS):  # the first at the start, the last at the end
        stream.seek(tensor.begin + number * (length - BLOCK) // (BLOCKS - 1))
        yield stream.read(BLOCK)
