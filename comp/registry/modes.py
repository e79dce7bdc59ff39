"""Names of modes: what pruning removes, and from which part of a model."""

from collections.abc import Iterable, Sequence
from typing import Literal

from comp.errors import CompExportError

# What a mode prunes: the last word of its name; image tokens alone are the mode itself.
Kind = Literal["parameters", "tokens", "vision_tokens"]

SHORT_MODES = {
    "vt": "vision_tokens",
    "lt": "language_tokens",
    "lp": "language_parameters",
    "vp": "vision_parameters",
    "cp": "cross_parameters",
}


def mode_names(modes: str) -> tuple[str, ...]:
    """Return the long names of modes, from names separated by commas.

    Raises:
        CompExportError: there are none.
    """
    names = [
        SHORT_MODES.get(mode.strip(), mode.strip()) for mode in modes.split(",") if mode.strip()
    ]
    if not names:
        raise CompExportError("--modes names no mode: give at least one of vt, lt, lp, vp, cp")
    return tuple(dict.fromkeys(names))


def shortened(modes: Iterable[str]) -> str:
    """Return modes as ``--modes`` takes them: short names separated by commas."""
    short = {name: each for each, name in SHORT_MODES.items()}
    return ",".join(short.get(mode, mode) for mode in modes)


def any_of(kind: Kind, modes: Sequence[str]) -> bool:
    """Whether some of the modes are of a kind."""
    return any(kind in (mode, mode.rpartition("_")[2]) for mode in modes)
