"""List the tensors of a checkpoint's safetensors files from their headers, without torch or numpy.

A safetensors file is a JSON header and raw little-endian bytes. The header is checked against the file's
size, and an index may only name files in its folder, so that damage is detected before memory is used.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.checkpoints.files import REPOSITORY, check_file
from comp.checkpoints.locate import INDEX, SINGLE
from comp.errors import CompExportError
from comp.utils.json_files import parse_json, read_object, refuse_pointer

MAX_HEADER = 100_000_000  # bytes; the format's own limit
AGAIN = "download it again"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number, by the format's own codes
FLOATS = ("F32", "F16", "BF16")  # supported data types of weights


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor, bytes ``begin`` to ``end`` of a file, with its data type (``F32``) and shape."""

    file: Path
    begin: int
    end: int
    code: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, one or its shards, after checking that they exist.

    Raises:
        CompExportError: there is none, a shard is missing or outside the directory, or the index is damaged.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() or single.is_symlink():
        check_file(single, directory)
        return [single]
    if not index.is_file():
        raise CompExportError(_nothing(directory))
    check_file(index, directory)
    shards = sorted(set(weight_map(index).values()))
    for shard in shards:
        if not (directory / shard).exists():
            raise CompExportError(f"{directory / shard} is missing: download the checkpoint again")
        check_file(directory / shard, directory)
    return [directory / shard for shard in shards]


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor by name, from an index.

    Raises:
        CompExportError: the index is damaged, or names a file outside its folder.
    """
    files = read_object(index, AGAIN).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CompExportError(
            f"{index} is no index of weights (weight_map is not an object with tensors): {AGAIN}"
        )
    for name, shard in files.items():
        if not isinstance(shard, str):
            raise CompExportError(
                f"{index}: weight_map.{name} is {shard!r}, not the name of a file: {AGAIN}"
            )
        if Path(shard).name != shard or shard == ".." or "\\" in shard or "\0" in shard:
            raise CompExportError(
                f"{index}: weight_map.{name} is {shard!r}, which leads out of {index.parent}: "
                "shards are files beside their index"
            )
    return files


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor in a checkpoint's files, by its stored name.

    Raises:
        CompExportError: as ``weight_files``, or a file is truncated or no safetensors file.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        tensors |= read_header(file)
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors in a safetensors file's header.

    Raises:
        CompExportError: the file is truncated, a Git LFS pointer, or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(128)
            refuse_pointer(start, str(file))
            length = int.from_bytes(start[:8], "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            stream.seek(8)
            text = stream.read(length).decode("utf-8")
        header = parse_json(text, f"the header of {file}", AGAIN)
        if not isinstance(header, dict):
            raise TypeError("a header that is no object")
        header.pop("__metadata__", None)
        return {name: _entry(file, name, each, 8 + length, size) for name, each in header.items()}
    except OSError as error:
        raise CompExportError(
            f"cannot read {file}: {error.strerror}; download the checkpoint again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompExportError(
            f"{file} is truncated or no safetensors file ({error}): {AGAIN}"
        ) from error


def _entry(file: Path, name: str, entry: dict[str, Any], start: int, size: int) -> StoredTensor:
    code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = (*shape, begin, end)
    if not isinstance(code, str) or not all(type(each) is int and each >= 0 for each in numbers):
        raise ValueError(f"{name} is listed as {json.dumps(entry)[:200]}")
    width = WIDTHS.get(code)
    expected = end - begin if width is None else math.prod(shape) * width
    if not begin <= end <= size - start or end - begin != expected:
        raise ValueError(f"{name} needs bytes {begin} to {end}, the file has {size - start}")
    return StoredTensor(file, start + begin, start + end, code, tuple(shape))


def _nothing(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in PICKLES)
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    cache = directory.parent.parent.name  # of a repository of the hub: models--OWNER--NAME
    if pickled:
        return (
            f"{directory} holds {pickled[0]}, a pickle, which is never loaded: "
            f"{_conversion(directory, str(directory))}"
        )
    if cache.startswith(REPOSITORY) and not others:
        name = cache.removeprefix(REPOSITORY).replace("--", "/", 1)
        return (
            f"{name} has no *.safetensors on the hub (older ones are pickles, which are never loaded): "
            f"{_conversion(directory, name)}"
        )
    there = f" ({others[0]} is neither)" if others else ""
    return (
        f"no {SINGLE} and no {INDEX} in {directory}{there}: pass --model DIR of a checkpoint with "
        "*.safetensors, its whole weights"
    )


def _conversion(directory: Path, source: str) -> str:
    """Say how to convert ``source``, a directory or a repository of the hub, to safetensors."""
    config = read_object(directory / "config.json", AGAIN)
    named = config.get("architectures")
    if not (isinstance(named, list) and named) or str(config.get("model_type")).startswith(OWN):
        return (
            f"convert it to {SINGLE} (from_pretrained and save_pretrained of transformers, of a file that "
            "you trust)"
        )
    program = f"from transformers import AutoProcessor, {named[0]}; " + "; ".join(
        f"{each}.from_pretrained({source!r}).save_pretrained('NEW')"
        for each in (named[0], "AutoProcessor")
    )
    return (
        "if you trust it, convert it once with transformers, "
        f'`python -c "{program}"`, and pass --model NEW'
    )


PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OWN = "comp_"  # prefix of the model types that this package saves; they are never pickled
