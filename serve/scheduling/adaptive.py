"""Choose the factor on keep ratios by load: more image tokens when idle, fewer when many wait."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from comp.errors import CompExportError
from serve.scheduling.requests import Load

AUTO: Final = "auto"
Factor: TypeAlias = float | Literal["auto"]
MOST_FACTOR = 1000.0


@dataclass(frozen=True)
class AdaptiveFactor:
    """The factor of a request that names none, chosen when its prompt is read.

    Attributes:
        most: factor if nothing waits and no other answer runs.
        least: factor if ``long_queue`` requests or more wait.
        long_queue: number of waiting requests; from none to this many the factor falls evenly from 1.
    """

    most: float = 1.5
    least: float = 0.5
    long_queue: int = 16

    def at(self, load: Load) -> float:
        """Return the factor for a request that is read beside this load."""
        if not load.waiting and not load.running:
            return self.most
        full = min(1.0, load.waiting / self.long_queue)
        return 1.0 - (1.0 - self.least) * full


ADAPTIVE = AdaptiveFactor()


def factor_named(text: str) -> Factor:
    """Read a factor on keep ratios, or ``auto``.

    Raises:
        CompExportError: it is neither.
    """
    if text == AUTO:
        return AUTO
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor <= MOST_FACTOR:
        raise CompExportError(
            f"--keep-factor {text}: give {AUTO}, or a number above 0 and at most {MOST_FACTOR:.0f}"
        )
    return factor
