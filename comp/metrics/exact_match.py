"""Score answers by exact match after normalising, with the confidence interval of an accuracy."""

import math
import re

_COMMA = re.compile(r"\s*,\s*")


def normalise(text: str) -> str:
    """Normalise a text: lowercase, single spaces, commas as ``", "``, without one final period.

    ``"Fox , dog."`` becomes ``"fox, dog"``. Nothing else is changed.
    """
    squeezed = " ".join(text.lower().split())
    squeezed = squeezed.removesuffix(".").rstrip()
    return _COMMA.sub(", ", squeezed).strip()


def exact_match(answer: str, prediction: str) -> bool:
    """Whether a prediction equals the answer, both normalised."""
    return normalise(answer) == normalise(prediction)


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, by default at 95 %: ``(low, high)`` in [0, 1].

    ``n = 0`` gives ``(0, 1)``.

    Raises:
        ValueError: unless ``0 <= successes <= n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At 0 and 1 one bound is the proportion itself; rounding must not move it inwards.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
