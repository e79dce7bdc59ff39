"""One hostile input, ready to be tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One input, ready to be tried.

    Attributes:
        deed: the change of the input.
        product: acts as a user does; raises ``CompExportError`` if the product refuses.
        right: returns the right answers for this input; called if the product's answers differ
            from ``before``.
        before: the answers for the unchanged input; ``None`` if there is no unchanged input.
        names: words, one of which a refusal must contain.
    """

    deed: str
    product: Callable[[], Any]
    right: Callable[[], Any]
    before: Any
    names: tuple[str, ...]


def nothing_else() -> Any:
    """Raise: damage has no other valid meaning."""
    raise LookupError("nothing but a refusal or the same answer is right")
