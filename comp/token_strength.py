"""How many tokens go, as one number: the more, the fewer multiply-accumulates are left."""

from collections.abc import Callable


def first_strength(macs: Callable[[int], int], weakest: int, strongest: int, target: float) -> int:
    """The smallest strength that leaves at most ``target`` MACs, or the strongest (bisection)."""
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
    """The strength that leaves nearest to ``target`` MACs; of two alike the weaker."""
    first = first_strength(macs, weakest, strongest, target)
    return min((max(weakest, first - 1), first), key=lambda tried: abs(macs(tried) - target))
