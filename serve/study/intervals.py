"""Means over seeds with 95 % intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds.

    Attributes:
        interval: 95 %, by Student's t distribution over the seeds; ``None`` for a single seed.
    """

    mean: float
    interval: Interval | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Return the estimate from one value per seed; at least one."""
        centre, n = mean(values), len(values)
        if n == 1:
            return cls(centre, None, n)
        half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
        return cls(centre, (centre - half, centre + half), n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """The mean difference of the first to the second, paired over the seeds that both have.

    Effects of a seed on both (data drawn, order of training) cancel. ``None`` without common seeds.
    """
    seeds = sorted(first.keys() & second.keys())
    return Estimate.of([first[seed] - second[seed] for seed in seeds]) if seeds else None


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The ``t`` with ``P(|T| < t) = confidence`` in Student's distribution.

    Raises:
        ValueError: fewer than one degree of freedom, or a confidence outside (0, 1).
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"{freedom} degrees of freedom, confidence {confidence}")
    low, high = 0.0, 1.0
    while within(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def within(t: float, freedom: int) -> float:
    """``P(|T| < t)`` of Student's distribution (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0))
