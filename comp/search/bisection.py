"""How far to raise a threshold: few tries, because each is a pass over the calibration examples."""

from collections.abc import Callable
from typing import Final, TypeVar

LOWEST: Final = 1e-3
HIGHEST: Final = 1e3
START: Final = 0.25  # where none was raised yet
FINENESS: Final = 1.03  # ratio of a threshold that is enough to one that is not, where to stop

Tried = TypeVar("Tried")


def raised(
    attempt: Callable[[float], Tried],
    is_enough: Callable[[Tried], bool],
    is_close: Callable[[Tried], bool],
    before: float,
) -> Tried:
    """What the lowest threshold leads to that is enough, or the first found that is so and close.

    Thresholds are doubled, from ``before`` on, until one is enough, or halved until one is not; then the
    interval between is halved on a logarithmic scale.

    Args:
        attempt: what a threshold leads to.
        is_enough: never again false for a higher threshold.
        is_close: whether what is enough is hardly more than enough.
        before: where the threshold stands; 0 where it was never raised.

    Returns:
        What ``HIGHEST`` leads to, where nothing is enough.
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
