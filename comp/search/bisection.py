"""Search for the lowest threshold or strength that is enough, by bisection.

Each try of a threshold is a pass over the calibration examples, so that tries are few.
"""

from collections.abc import Callable
from typing import Final, TypeVar

LOWEST: Final = 1e-3
HIGHEST: Final = 1e3
START: Final = 0.25  # first threshold tried if none was raised yet
FINENESS: Final = 1.03  # stop at this ratio of a threshold that is enough to one that is not

Tried = TypeVar("Tried")


def find_threshold(
    attempt: Callable[[float], Tried],
    is_enough: Callable[[Tried], bool],
    is_close: Callable[[Tried], bool],
    before: float,
) -> Tried:
    """Return the result of the lowest threshold that is enough, or of the first one that is also close.

    Thresholds are doubled from ``before`` on until one is enough, or halved until one is not. Then the
    interval between is bisected on a logarithmic scale.

    Args:
        attempt: computes the result of a threshold.
        is_enough: whether a result is enough; monotone in the threshold.
        is_close: whether a result that is enough is hardly more than enough.
        before: the current threshold; 0 if it was never raised.

    Returns:
        The result of ``HIGHEST`` if none is enough.
    """
    low = high = max(before, LOWEST) if before else START
    best = attempt(high)
    if is_enough(best):
        while is_enough(best) and not is_close(best) and low > LOWEST:
            low = max(low / 2, LOWEST)
            tried = attempt(low)
            if not is_enough(tried):
                break
            high, best = low, tried
    else:
        while not is_enough(best) and high < HIGHEST:
            low, high = high, min(2 * high, HIGHEST)
            best = attempt(high)
    while is_enough(best) and not is_close(best) and high > FINENESS * low:
        middle = (low * high) ** 0.5
        tried = attempt(middle)
        if is_enough(tried):
            high, best = middle, tried
        else:
            low = middle
    return best


def first_strength(macs: Callable[[int], int], weakest: int, strongest: int, target: float) -> int:
    """Smallest strength that leaves at most ``target`` MACs, or the strongest (bisection)."""
    low, high = weakest, strongest
    while low < high:
        middle = (low + high) // 2
        if macs(middle) > target:
            low = middle + 1
        else:
            high = middle
    return low


def nearest_strength(
    macs: Callable[[int], int], weakest: int, strongest: int, target: float
) -> int:
    """Strength that leaves MACs nearest to ``target``; the weaker of two equally near ones."""
    first = first_strength(macs, weakest, strongest, target)
    return min((max(weakest, first - 1), first), key=lambda tried: abs(macs(tried) - target))
