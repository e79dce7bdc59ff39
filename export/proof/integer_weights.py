"""Read the integer weights of an artifact as floats, and put them into a torch model.

So ``verify`` compares a graph of 8 or 4 bits with torch on the very same weights: the remaining difference
is due to the rounding of layer inputs at run time, not to the rounding of weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from comp.families.streamed import StreamedLinear
from export.artifact.manifest import Precision
from export.graph.integer_linear import SCALES
from export.graph.integer_rounding import nibbles

Matrix = NDArray[np.float32]

# How far a row of integers may be from the row of weights, as a share of its length. Measured on the embedded
# models: 0.025 and 0.25 at most. Weights of another head are about 1.7 away.
ROUNDING_BOUNDS: Mapping[Precision, float] = {"int8": 0.1, "int4": 0.5}


@dataclass(frozen=True)
class RoundedWeights:
    """The integers of an artifact against the weights that they were rounded from.

    Torch is given the artifact's own integers, so that a wrong one would be wrong on both sides.

    Attributes:
        worst: largest distance of a row of a matrix, as a share of the row's length.
        where: the matrix.
        bound: bound of that distance.
    """

    name: str
    precision: Precision
    worst: float
    where: str

    @property
    def bound(self) -> float:
        return ROUNDING_BOUNDS[self.precision]

    @property
    def ok(self) -> bool:
        return self.worst <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in ``verify.json``."""
        finite = bool(np.isfinite(self.worst))
        return {
            "name": self.name,
            "ok": self.ok,
            "precision": self.precision,
            "max_row_distance": self.worst if finite else None,
            "bound": self.bound,
            "where": self.where,
        }


def rounded_from(
    name: str,
    precision: Precision,
    model: torch.nn.Module,
    matrices: Mapping[str, Matrix],
    naming: Callable[[str], str] = str,
) -> RoundedWeights:
    """Compare integers with a model's weights; arguments as of ``replaced_weights``."""
    modules = {naming(f"{each}.weight"): module for each, module in model.named_modules()}
    worst, where = 0.0, ""
    for tensor in matrices:
        module = modules[tensor]
        whole = module.stored.read() if isinstance(module, StreamedLinear) else module.weight
        distance = _row_distance(whole.detach().float().cpu().numpy(), matrices[tensor])
        if not distance <= worst:
            worst, where = distance, tensor
    return RoundedWeights(name, precision, worst, where)


def _row_distance(weight: Matrix, integers: Matrix) -> float:
    """The largest distance of two rows, as a share of the first one's length; infinite of other shapes."""
    if weight.shape != integers.shape:
        return float("inf")
    apart = np.linalg.norm(weight - integers, axis=1)
    length = np.linalg.norm(weight, axis=1)
    shares = np.where(apart == 0, 0.0, apart / np.maximum(length, 1e-12))
    return float(shares.max())


class IntegerWeights(Mapping[str, Matrix]):
    """Matrices ``[out, in]`` by tensor name; scales are multiplied in when a matrix is read."""

    def __init__(self, stored: dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol]]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Matrix:
        values, scales = self._stored[name]
        return _multiplied(values, scales.numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def integer_weights(directory: Path) -> IntegerWeights:
    """Read the integer weights of all graphs in a directory."""
    tensors_of: dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}
    for path in sorted(directory.glob("*.onnx")):
        tensors = ir.load(path).graph.initializers
        for name in tensors:
            if name.endswith(SCALES):
                matrix = name.removesuffix(SCALES)
                values, scales = tensors[matrix].const_value, tensors[name].const_value
                assert values is not None
                assert scales is not None
                tensors_of[matrix] = values, scales
    return IntegerWeights(tensors_of)


def _multiplied(values: ir.TensorProtocol, scales: NDArray[np.generic]) -> NDArray[np.float32]:
    """Dequantise to ``[out, in]``, for each of the layouts in ``export.graph.integer_linear``."""
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
def replaced_weights(
    model: torch.nn.Module, matrices: Mapping[str, Matrix], naming: Callable[[str], str] = str
) -> Iterator[None]:
    """Run the block with other weights in the model; a tied matrix is untied meanwhile.

    Args:
        model: the torch model.
        matrices: ``[out, in]`` by tensor name; streamed layers read theirs when it is used.
        naming: maps tensor names of the model to those of ``matrices``.

    Raises:
        ValueError: the model has no tensor of that name and shape.
    """
    modules = {naming(f"{name}.weight"): module for name, module in model.named_modules()}
    with ExitStack() as undo:
        for name in matrices:
            module = modules.get(name)
            if isinstance(module, StreamedLinear):
                undo.callback(setattr, module, "stored", module.stored)
                module.stored = _Of(matrices, name, module.stored.size)
                continue
            weight, matrix = getattr(module, "weight", None), matrices[name]
            if module is None or weight is None or tuple(weight.shape) != matrix.shape:
                raise ValueError(f"the model has no {name} of shape {matrix.shape}")
            undo.callback(setattr, module, "weight", weight)
            other = torch.tensor(matrix, dtype=weight.dtype, device=weight.device)
            module.weight = torch.nn.Parameter(other, requires_grad=False)
        yield


@dataclass(frozen=True)
class _Of:
    """One of the matrices, with the size of the model's layer (``comp.families.streamed.MatrixSource``)."""

    matrices: Mapping[str, Matrix]
    name: str
    size: tuple[int, ...]

    def read(self) -> torch.Tensor:
        matrix = self.matrices[self.name]
        if matrix.shape != self.size:
            raise ValueError(f"the model has no {self.name} of shape {matrix.shape}")
        return torch.from_numpy(matrix)
