"""Digest of the weights of a checkpoint, to tell apart models at the same place.

A SHA-256 over every tensor's name, data type, shape and bytes, in the order of names; of a large tensor, over
evenly spaced blocks of its bytes. A 7B model thus takes a second instead of a minute. How tensors are
distributed over files does not matter. Another model, a further training step or another precision changes
the digest; a single changed element of a large tensor may not.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from comp.checkpoints.locate import INDEX, SINGLE
from comp.checkpoints.weight_files import StoredTensor, stored_tensors
from comp.errors import CompExportError

SCHEME = "sampled-sha256"
BLOCK = 16 * 2**10  # bytes
BLOCKS = 16  # of a large tensor; a tensor that is not larger than all of them is read whole


def weights_digest(directory: Path) -> str | None:
    """Return ``sampled-sha256:`` and 64 hexadecimal digits; ``None`` if there are no safetensors.

    Raises:
        CompExportError: a file is missing, truncated or no safetensors file.
    """
    if not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        return None
    tensors = stored_tensors(directory)
    digest = hashlib.sha256()
    opened: dict[Path, BinaryIO] = {}
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            kind = f"{tensor.code} {list(tensor.shape)}"
            digest.update(f"{name} {kind} {tensor.end - tensor.begin}\n".encode())
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


def _sampled(stream: BinaryIO, tensor: StoredTensor) -> Iterator[bytes]:
    length = tensor.end - tensor.begin
    if length <= BLOCK * BLOCKS:
        stream.seek(tensor.begin)
        yield stream.read(length)
        return
    for number in range(BLOCKS):  # the first at the start, the last at the end
        stream.seek(tensor.begin + number * (length - BLOCK) // (BLOCKS - 1))
        yield stream.read(BLOCK)
