"""Pydantic fields that become options: marks in their annotations, and errors for users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.errors import CompExportError
from comp.utils.similar import suggestion


@dataclass(frozen=True)
class OneOf:
    """Mark of a string with a choice of names, which are computed when they are needed."""

    names: Callable[[], Sequence[str]]


@dataclass(frozen=True)
class OptionGroup:
    """Mark of an option: the group of ``--help`` that it is shown in."""

    title: str


HARDWARE = OptionGroup("Hardware")
OTHER_OPTIONS = OptionGroup("Other options")


def marks_of(model: type[BaseModel], kind: type[Any]) -> dict[str, Any]:
    """Return the marks of a class in the fields' annotations, by field; fields without one are left out."""
    return {
        name: mark
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, kind)
    }


def refused(model: type[BaseModel], error: ValidationError) -> CompExportError:
    """Return the error for the first value that a model refuses; suggests the most similar option."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        hint = suggestion(name, model.model_fields) or "leave it out"
        return CompExportError(f"unknown option {name!r}: {hint}")
    if first["type"] == "missing":
        return CompExportError(f"option {name!r} is missing: give it")
    message = first["msg"]
    return CompExportError(
        f"option {name!r} is {first['input']!r}: {message[0].lower()}{message[1:]}"
    )
