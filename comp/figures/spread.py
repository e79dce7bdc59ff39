"""Compute mean and standard deviation of a few dozen measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (0 of a single one) of ``count`` measurements."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
