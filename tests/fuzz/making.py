"""One hostile input, ready to be tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One input, ready to be tried.

    Attributes:
        deed: what was changed.
        product: does what a user does; raises ``CompExportError`` where it refuses.
        right: the answers that are right for this input; asked for when the product answers
            otherwise than for the input as it was.
        before: the answers for the input as it was; ``None`` where each input is its own.
        names: words of which a refusal has one.
    """

    deed: str
    product: Callable[[], Any]
    right: Callable[[], Any]
    before: Any
    names: tuple[str, ...]


def nothing_else() -> Any:
    """Where damage cannot have another meaning."""
    raise LookupError("nothing but a refusal or the same answer is right")
