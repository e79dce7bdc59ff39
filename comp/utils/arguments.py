"""Check arguments of the Python API; on the command line the types of options do that."""

import os
from collections.abc import Sequence
from pathlib import Path

from comp.errors import CompExportError


def path_of(name: str, value: object) -> Path:
    """Return a path that is given as text or as a path.

    Raises:
        CompExportError: it is something else.
    """
    if not isinstance(value, str | os.PathLike):
        raise CompExportError(f"{name} is {value!r}: give a path, as text or as a pathlib.Path")
    return Path(value)


def check_choices(**arguments: tuple[object, Sequence[str]]) -> None:
    """Refuse values that are not among their choices; by name, the value and its choices."""
    for name, (value, choices) in arguments.items():
        if value not in choices:
            raise CompExportError(f"{name} is {value!r}: choose from {', '.join(choices)}")


def check_counts(**counts: object) -> None:
    """Refuse numbers that are not whole or are below 1; ``None`` stands for a default."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CompExportError(f"{name} is {value!r}: give a whole number from 1")
