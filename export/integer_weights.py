"""The integers in an artifact's files, as the numbers they stand for, and a torch model that has these.

So that ``verify`` compares a graph of 8 or 4 bits with torch at the very same weights: what is left between
them is what the runtime does to the inputs of its layers, and not what rounding weights did.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from export.graph.quantised import SCALES
from export.quantise import nibbles


def integer_weights(directory: Path) -> dict[str, NDArray[np.float32]]:
    """Matrices ``[out, in]`` of all graphs in a directory by tensor name, with their scales multiplied in."""
    found: dict[str, NDArray[np.float32]] = {}
    for path in sorted(directory.glob("*.onnx")):
        tensors = ir.load(path).graph.initializers
        for name in tensors:
            if name.endswith(SCALES):
                matrix = name.removesuffix(SCALES)
                values, scales = tensors[matrix].const_value, tensors[name].const_value
                assert values is not None
                assert scales is not None
                found[matrix] = _multiplied(values, scales.numpy())
    return found


def _multiplied(values: ir.TensorProtocol, scales: NDArray[np.generic]) -> NDArray[np.float32]:
    """``[out, in]``, of each of the layouts in ``export.graph.quantised``."""
    integers = values.numpy()
    factors = scales.astype(np.float32)
    if integers.dtype == np.uint8:  # [out, groups, group / 2], two to a byte
        groups = nibbles(integers).astype(np.float32) * factors[..., None]
        return groups.reshape(len(integers), -1)
    transposed = integers.astype(np.float32).T  # [out, in]
    if factors.ndim == 1:
        return transposed * factors[:, None]
    rows, width = transposed.shape
    groups = transposed.reshape(rows, len(factors), -1) * factors.T[..., None]
    return groups.reshape(rows, width)


@contextmanager
def having(
    model: torch.nn.Module,
    matrices: dict[str, NDArray[np.float32]],
    naming: Callable[[str], str] = str,
) -> Iterator[None]:
    """The model with other weights inside; a matrix tied to another tensor is untied for as long.

    Args:
        model: torch's.
        matrices: ``[out, in]`` by tensor name.
        naming: gives the tensor name of one of the model's.

    Raises:
        ValueError: the model has no such tensor, or of another shape.
    """
    modules = {naming(f"{name}.weight"): module for name, module in model.named_modules()}
    before: list[tuple[torch.nn.Module, torch.nn.Parameter]] = []
    try:
        for name, matrix in matrices.items():
            weight = getattr(modules.get(name), "weight", None)
            if weight is None or tuple(weight.shape) != matrix.shape:
                raise ValueError(f"the model has no {name} of shape {matrix.shape}")
            before.append((modules[name], weight))
            other = torch.tensor(matrix, dtype=weight.dtype, device=weight.device)
            modules[name].weight = torch.nn.Parameter(other, requires_grad=False)
        yield
    finally:
        for module, weight in before:
            module.weight = weight
