"""The points where a model's blocks are measured, and grids of times that never fall along an axis."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUARTERS = (0.25, 0.5, 0.75, 1.0)
EIGHTH = 0.125
NARROW = 16  # channels: the narrowest FFN, and the multiple that plans round to


@dataclass(frozen=True)
class Axes:
    """The measured points of one part of a model; each axis ascends to the dense size."""

    tokens: tuple[int, ...]
    heads: tuple[int, ...]
    channels: tuple[int, ...]


def axes_of(tokens: int, heads: int, channels: int, fixed: bool = False) -> Axes:
    """The default points: quarters of each axis, and smaller shares where matrices get thin.

    Args:
        tokens: largest number of tokens that enter a block.
        heads, channels: numbers in the dense block.
        fixed: whether every block sees the same number of tokens.
    """
    shares = (EIGHTH / 2, EIGHTH, *QUARTERS)
    return Axes(
        tokens=(tokens,) if fixed else _points(tokens, shares, 1),
        heads=_points(heads, QUARTERS, 1),
        channels=_points(channels, (EIGHTH, *QUARTERS), min(NARROW, channels), NARROW),
    )


def _points(most: int, shares: tuple[float, ...], least: int, unit: int = 1) -> tuple[int, ...]:
    """Ascending points from ``least`` to ``most``; those between are multiples of ``unit``."""
    between = (round(share * most / unit) * unit for share in shares)
    return tuple(sorted({least, most, *(point for point in between if least < point < most)}))


def monotone(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make times monotone along every axis; noise is averaged, not cut.

    The result is the mean of two monotone bounds: the highest time of all points that are no larger, and
    the lowest of all that are no smaller. Where the times ascend already, both bounds are the times
    themselves.
    """
    below, above = times, times
    for axis in range(times.ndim):
        below = np.maximum.accumulate(below, axis=axis)
        above = np.flip(np.minimum.accumulate(np.flip(above, axis), axis=axis), axis)
    return (below + above) / 2
