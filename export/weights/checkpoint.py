"""Read a checkpoint's tensors one at a time, under canonical names.

safetensors is a JSON header and raw little-endian bytes, so the few lines here read one tensor
without torch and without mapping the file: exporting a 7B model takes the memory of a tensor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from comp.checkpoints.llava_tensors import no_float
from comp.checkpoints.locate import read_config
from comp.checkpoints.tensor_names import canonical_name
from comp.checkpoints.tying import stand_ins
from comp.checkpoints.weight_files import StoredTensor, stored_tensors
from comp.errors import CompExportError

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


class CheckpointWeights:
    """The tensors of a checkpoint directory, in one safetensors file or in shards.

    A tensor that is not stored may stand for another one (an output layer tied to its word embedding) if
    ``config.json`` says so. Tensors of unsupported types are not among the names.

    Raises:
        CompExportError: no safetensors, a missing shard, a truncated or broken file; on reading, a
            tensor that is missing or not float32, float16 or bfloat16.
    """

    def __init__(self, directory: Path, naming: Callable[[str], str] = canonical_name) -> None:
        """``naming`` maps stored names to the names that graphs use."""
        self.directory = directory
        self._stored = {naming(name): each for name, each in stored_tensors(directory).items()}

    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors in the files."""
        return tuple(name for name, tensor in self._stored.items() if tensor.code in DTYPES)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return DTYPES[self._find(name).code]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, in the data type it was saved in."""
        stored = self._find(name)
        with stored.file.open("rb") as file:
            file.seek(stored.begin)
            values = np.fromfile(file, dtype=DTYPES[stored.code], count=stored.count)
        return values.reshape(stored.shape)

    def _find(self, name: str) -> StoredTensor:
        tensor = self._stored.get(name)
        if tensor is None:
            tensor = self._stored.get(stand_ins(read_config(self.directory)).get(name, ""))
        if tensor is None:
            raise CompExportError(
                f"{self.directory} has no tensor {name}: not a whole checkpoint of its kind; "
                "download it again or pass another --model"
            )
        if tensor.code not in DTYPES:
            raise no_float(tensor, name)
        return tensor
