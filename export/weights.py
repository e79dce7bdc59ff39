"""Reading a checkpoint's tensors one at a time, whatever names they were saved under.

safetensors is a JSON header and raw little-endian bytes, so the few lines here read one tensor
without torch and without mapping the file: exporting a 7B model takes the memory of a tensor.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from comp.checkpoints import INDEX, SINGLE
from comp.errors import CompExportError
from comp.families.llava_names import canonical_name

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class WeightSource(Protocol):
    """Tensors by canonical name: those of ``LlavaForConditionalGeneration`` in transformers 5."""

    def names(self) -> tuple[str, ...]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class _Stored:
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class CheckpointWeights:
    """The tensors of a checkpoint directory, in one safetensors file or in shards.

    A missing ``lm_head.weight`` is the embedding (tied).

    Raises:
        CompExportError: no safetensors there, a missing shard, a truncated or broken file, or a
            data type other than float32, float16 and bfloat16.
    """

    def __init__(self, directory: Path, naming: Callable[[str], str] = canonical_name) -> None:
        """``naming`` gives the name that graphs ask for of a stored one."""
        self.directory = directory
        self._stored: dict[str, _Stored] = {}
        for file in _files(directory):
            for name, stored in _read_header(file).items():
                self._stored[naming(name)] = stored

    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors in the files."""
        return tuple(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._find(name).dtype

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, in the data type it was saved in."""
        stored = self._find(name)
        count = math.prod(stored.shape)
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            values = np.fromfile(file, dtype=stored.dtype, count=count)
        return values.reshape(stored.shape)

    def _find(self, name: str) -> _Stored:
        if name == LM_HEAD and name not in self._stored:
            name = EMBEDDING
        try:
            return self._stored[name]
        except KeyError:
            raise CompExportError(
                f"{self.directory} has no tensor {name}: not a whole checkpoint of its kind; "
                "download it again or pass another --model"
            ) from None


def _files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, every one checked to exist."""
    index = directory / INDEX
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not index.is_file():
        raise CompExportError(
            f"no {SINGLE} and no {INDEX} in {directory}: "
            "pass --model DIR of a checkpoint with safetensors"
        )
    try:
        shards = sorted(
            set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CompExportError(
            f"{index} is no index of weights ({error}): download it again"
        ) from error
    for shard in shards:
        if not (directory / shard).is_file():
            raise CompExportError(f"{directory / shard} is missing: download the checkpoint again")
    return [directory / shard for shard in shards]


def _read_header(file: Path) -> dict[str, _Stored]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        header = {  # old releases saved a buffer of integers
            name: entry for name, entry in header.items() if not name.endswith(".position_ids")
        }
        found = {
            name: _entry(file, name, entry, 8 + length, size) for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompExportError(
            f"{file} is truncated or no safetensors file ({error}): download it again"
        ) from error
    return found


def _entry(file: Path, name: str, entry: dict[str, Any], start: int, size: int) -> _Stored:
    if entry["dtype"] not in DTYPES:
        raise CompExportError(
            f"{file}: {name} is {entry['dtype']}: only float32, float16 and bfloat16 weights are "
            "read; pass an unquantised checkpoint with --model"
        )
    dtype = DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
        raise ValueError(f"{name} needs bytes {begin} to {end}, the file has {size - start}")
    return _Stored(file, start + begin, shape, dtype)


class MemoryWeights:
    """Tensors of a model in memory (a ``state_dict``, of torch or numpy), by canonical name.

    Torch tensors are recognised by their ``detach``; torch itself is not imported.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = {canonical_name(name): tensor for name, tensor in state.items()}

    def names(self) -> tuple[str, ...]:
        return tuple(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._find(name).shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        return _as_numpy(self._find(name)[:0]).dtype

    def read(self, name: str) -> np.ndarray:
        return _as_numpy(self._find(name))

    def _find(self, name: str) -> Any:
        if name == LM_HEAD and name not in self._state:
            name = EMBEDDING
        if name not in self._state:
            raise CompExportError(f"the model has no tensor {name}: pass a LLaVA-1.5's state_dict")
        return self._state[name]


def _as_numpy(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no bfloat16 of its own: pass the bits
        import torch

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
