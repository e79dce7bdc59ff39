"""Read JSON files that hold the version of their format."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from comp.errors import CompExportError
from comp.utils.json_files import read_json

Model = TypeVar("Model", bound=BaseModel)


def read_versioned(
    path: Path,
    what: str,
    version: int,
    absent: tuple[str, str],
    again: str,
    keys: Collection[str] = (),
) -> dict[str, Any]:
    """Return the object in a file of this version.

    Args:
        path: path of the file.
        what: its content with an article, as ``a plan``.
        version: the version that this release reads.
        absent: error for a missing file, and how to make it.
        again: how to make the file again.
        keys: keys of such a file; one without any of them is of another kind.

    Raises:
        CompExportError: the file is missing, damaged, of another kind, or of another version.
    """
    try:
        path.stat()
    except OSError as error:
        missing, make = absent
        raise CompExportError(f"{missing}: {error.strerror}; {make}") from error
    content: Any = read_json(path, again)
    if not isinstance(content, dict):
        raise CompExportError(f"{path} is not {what}: it holds no JSON object; {again}")
    if keys and content.keys().isdisjoint(keys):
        raise CompExportError(
            f"{path} is not {what}: it has none of {', '.join(keys)}; name another file, or {again}"
        )
    stated = content.get("version")
    if stated != version or isinstance(stated, bool):
        raise CompExportError(
            f"{path} is {what} of version {stated!r}, this release reads version {version}: {again}"
        )
    return content


def validated(model: type[Model], content: dict[str, Any], path: Path, again: str) -> Model:
    """Return the fields of a file as a model.

    Raises:
        CompExportError: names the first invalid field.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise CompExportError(f"{path}: {first_wrong(error)}; {again}") from error


def first_wrong(error: ValidationError) -> str:
    """Return the first field that a model refuses, with the reason."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
