"""Round weights to 8 or 4 bits: integers and scales, to the nearest.

Symmetric, so that zero stays zero. 8 bits have one scale for each output; 4 bits one for each group of
neighbouring inputs of an output. The group is the largest size that divides the width: pruned channels
leave widths that no fixed group fits. If none fits, the layer keeps 8 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from export.artifact.weight_groups import GROUPS, group_of

Bits = Literal[4, 8]
MIDDLE = 8  # offset of 4-bit values in unsigned storage


@dataclass(frozen=True)
class Quantised:
    """A matrix ``[out, in]`` as ``values * scales``.

    Attributes:
        values: int8 ``[out, in]``, or int4 of the same shape.
        scales: float32 ``[out, in / group]``.
    """

    values: NDArray[np.generic]
    scales: NDArray[np.float32]


def rounded(weight: NDArray[np.floating], bits: Bits) -> Quantised:
    """Round a matrix ``[out, in]`` to the nearest of 255 or 16 values.

    Raises:
        ValueError: 4 bits, and no group divides the width.
    """
    weight = weight.astype(np.float32)
    rows, width = weight.shape
    group = width if bits == 8 else group_of(width)
    if group is None:
        raise ValueError(f"no group of {GROUPS} divides a width of {width}")
    groups = weight.reshape(rows, width // group, group)
    if bits == 8:
        scales = np.abs(groups).max(axis=2) / 127
    else:
        # The extreme becomes -8, the one value that has no opposite: 16 values and not 15.
        place = np.abs(groups).argmax(axis=2)[..., None]
        scales = np.take_along_axis(groups, place, axis=2)[..., 0] / -8
    scales[scales == 0] = 1.0
    least, most, kind = (-127, 127, np.int8) if bits == 8 else (-8, 7, ml_dtypes.int4)
    values = np.rint(groups / scales[..., None]).clip(least, most)
    return Quantised(values.reshape(rows, width).astype(np.int8).astype(kind), scales)


def packed_nibbles(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pack int4 ``[..., n]`` as ``[..., n / 2]``: ``MIDDLE`` added, the first in a byte's low half."""
    shifted = (values.astype(np.int8) + MIDDLE).astype(np.uint8)
    packed: NDArray[np.uint8] = shifted[..., ::2] | (shifted[..., 1::2] << np.uint8(4))
    return packed


def nibbles(packed: NDArray[np.uint8]) -> NDArray[np.generic]:
    """Unpack ``packed_nibbles`` to int4 ``[..., n]``."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8) - MIDDLE
    return halves.reshape(*packed.shape[:-1], -1).astype(ml_dtypes.int4)


class Rounding:
    """A matrix's integers: given, or read and rounded to the nearest when first needed.

    Args:
        read: returns the matrix ``[out, in]``.
        bits: bits of each weight.
        known: integers of these bits, if they are given.
    """

    def __init__(
        self,
        read: Callable[[], NDArray[np.floating]],
        bits: Bits,
        known: Quantised | None = None,
    ) -> None:
        self._find = (lambda: rounded(read(), bits)) if known is None else (lambda: known)
        self._scales: NDArray[np.float32] | None = None

    def values(self) -> NDArray[np.generic]:
        """Integers ``[out, in]``; the scales of the same pass are kept, as they are small."""
        quantised = self._find()
        self._scales = quantised.scales
        return quantised.values

    def scales(self) -> NDArray[np.float32]:
        """``[out, in / group]``; call ``values`` first to read the matrix only once."""
        if self._scales is None:
            self._scales = self._find().scales
        return self._scales
