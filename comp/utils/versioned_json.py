"""Reading JSON files that say which version of their format they are."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from comp.errors import CompExportError
from comp.utils.json_files import read_json

Model = TypeVar("Model", bound=BaseModel)


def read_versioned(
    path: Path, what: str, version: int, absent: tuple[str, str], again: str
) -> dict[str, Any]:
    """The object in a file of this version.

    Args:
        path: of the file.
        what: it holds, with its article: ``a plan``.
        version: that this release reads.
        absent: what is missing without it, and how it is made.
        again: says how another one is made.

    Raises:
        CompExportError: the file is missing, damaged, or of another version.
    """
    try:
        path.stat()
    except OSError as error:
        missing, make = absent
        raise CompExportError(f"{missing}: {error.strerror}; {make}") from error
    found: Any = read_json(path, again)
    said = found.get("version") if isinstance(found, dict) else None
    if said != version or isinstance(said, bool):
        raise CompExportError(
            f"{path} is {what} of version {said!r}, this release reads version {version}: {again}"
        )
    return found


def validated(model: type[Model], found: dict[str, Any], path: Path, again: str) -> Model:
    """The fields of a file as a model.

    Raises:
        CompExportError: naming the first field that is wrong.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise CompExportError(f"{path}: {first_wrong(error)}; {again}") from error


def first_wrong(error: ValidationError) -> str:
    """The first field that a model refuses, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
