"""Formulas for the importance of parameters, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from comp.errors import CompExportError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerStatistics:
    """Input of a formula: statistics of the channels that an output projection of a block reads.

    Attributes:
        part: ``vision``, ``language`` or ``cross``.
        layer: number of the block in its part, from 0.
        kind: ``heads``: outputs of attention heads (a head's score is the mean over its channels);
            ``channels``: intermediate channels of the FFN.
        magnitude: mean absolute weight of each channel in the projection, ``[D]``: ``m_i`` of Eq. 3.
        norm: mean over calibration examples of each channel's norm over tokens, weighted by Eq. 4, ``[D]``.
    """

    part: str
    layer: int
    kind: Literal["heads", "channels"]
    magnitude: "Tensor"
    norm: "Tensor"


Formula = Callable[[LayerStatistics], "Tensor"]
"""Returns the importance of each channel, ``[D]``; higher is kept."""

F = TypeVar("F", bound=Formula)

IMPORTANCES: dict[str, Formula] = {
    "cim": lambda layer: layer.norm * layer.magnitude,  # Eq. 3; its token weights make it Eq. 4
    "magnitude": lambda layer: layer.magnitude,
    "activation": lambda layer: layer.norm,
}
"""All that is registered (``register_importance``)."""


def register_importance(name: str) -> Callable[[F], F]:
    """Register a formula for ``importance=NAME`` of CoMP; a decorator.

    Raises:
        CompExportError: the name is taken.
    """
    if name in IMPORTANCES:
        raise CompExportError(f"the importance {name!r} is registered already: choose another name")

    def register(formula: F) -> F:
        IMPORTANCES[name] = formula
        return formula

    return register
