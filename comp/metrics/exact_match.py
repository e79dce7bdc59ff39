"""Scoring answers: exact match after normalising, and the interval of a measured accuracy."""

import math
import re

_COMMA = re.compile(r"\s*,\s*")


def normalise(text: str) -> str:
    """Lowercase, white space squeezed, commas as ``", "``, one final period dropped.

    ``"Fox , dog."`` becomes ``"fox, dog"``. Nothing else is forgiven.
    """
    squeezed = " ".join(text.lower().split())
    squeezed = squeezed.removesuffix(".").rstrip()
    return _COMMA.sub(", ", squeezed).strip()


def exact_match(answer: str, prediction: str) -> bool:
    """Whether a prediction is the answer, both normalised."""
    return normalise(answer) == normalise(prediction)


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, by default at 95 %: ``(low, high)`` in [0, 1].

    ``n = 0`` knows nothing and gives ``(0, 1)``.

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
    # At the ends one bound is the proportion itself; rounding must not move it inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
