"""Clocks: one measured time of a request, in several runs."""

from dataclasses import dataclass

import numpy as np

ALIKE = 0.02  # a smaller difference counts as none
NOISY = 0.25  # of the median: if the middle half of the runs spans more, the machine is busy
FEWEST = 2  # runs, for a spread


@dataclass(frozen=True)
class Clock:
    """A time in milliseconds, of one model.

    Attributes:
        name: what is timed.
        values: one time for each run; empty if there is nothing to measure.
        bench: name of the same time in ``reports/bench.json``, if it is there.
        size: how much is timed, in words.
        main: whether it is what pruning changes most.
    """

    name: str
    values: tuple[float, ...]
    bench: str = ""
    size: str = ""
    main: bool = False

    @property
    def median(self) -> float | None:
        return float(np.median(self.values)) if self.values else None

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half of the runs."""
        low, high = np.percentile(self.values, [25, 75])
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Width of the middle half, as a share of the median; 0 of few runs."""
        if len(self.values) < FEWEST or not self.median:
            return 0.0
        low, high = self.quartiles
        return (high - low) / self.median


def gain(dense: Clock, compressed: Clock) -> str:
    """How much faster the compressed model is, or that noise hides it."""
    before, after = dense.median, compressed.median
    if not before or not after:
        return ""
    if abs(before / after - 1) < ALIKE:
        return "alike"
    many = min(len(dense.values), len(compressed.values)) >= FEWEST
    (low, high), (other_low, other_high) = dense.quartiles, compressed.quartiles
    if many and low <= other_high and other_low <= high:
        return "within noise"
    times = before / after
    return f"{times:.2f}× faster" if times >= 1 else f"{1 / times:.2f}× slower"
