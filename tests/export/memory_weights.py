"""Weights in memory: as the source that graphs are built from, and rounded ones as numbers again."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from comp.checkpoints.tensor_names import canonical_name
from comp.errors import CompExportError
from export.graph.integer_rounding import Quantised


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


def dequantised(matrix: Quantised) -> NDArray[np.float32]:
    """Return the weights that rounded ones stand for, ``[out, in]``."""
    rows, width = matrix.values.shape
    groups = matrix.values.astype(np.float32).reshape(rows, matrix.scales.shape[1], -1)
    return (groups * matrix.scales[:, :, None]).reshape(rows, width)
