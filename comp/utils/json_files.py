"""Read untrusted JSON: bounded, in UTF-8, with errors that name file and field.

A byte order mark is optional. Files must be regular and of a plausible size: a FIFO or ``/dev/zero`` is
refused.
"""

import codecs
import json
import re
import stat
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from comp.errors import CompExportError

MAX_BYTES = 64 * 2**20  # of a file of settings
MAX_DEPTH = 64  # lists and objects inside each other
POINTER = "version https://git-lfs.github.com/spec/"  # start of a Git LFS pointer file
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # byte order marks
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a regular file, without its byte order mark.

    Args:
        path: path of the file.
        remedy: end of every error message.
        max_bytes: largest size of the file.

    Raises:
        CompExportError: the file is missing, no regular file, too large, a Git LFS pointer, or not
            UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CompExportError(f"{path} is {_kind(status.st_mode)}, not a file: {remedy}")
        if status.st_size > max_bytes:
            raise CompExportError(
                f"{path} has {status.st_size} bytes, and {max_bytes} are the most that such a file "
                f"may have: {remedy}"
            )
        with path.open("rb") as file:
            data = file.read(min(status.st_size, max_bytes) + 1)
    except OSError as error:
        raise CompExportError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    return decoded(data, str(path), remedy)


def decoded(data: bytes, where: str, remedy: str) -> str:
    """Decode bytes of a file to text, without a byte order mark; ``where`` names them in errors.

    Raises:
        CompExportError: a Git LFS pointer, UTF-16, or not UTF-8 otherwise.
    """
    refuse_pointer(data, where)
    if data.startswith(UTF_16):
        raise CompExportError(f"{where} is UTF-16 text: save it as UTF-8, or {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CompExportError(
            f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8, or {remedy}"
        ) from error


def refuse_pointer(start: bytes, where: str) -> None:
    """Refuse a file whose first bytes are those of a Git LFS pointer."""
    if start.startswith(POINTER.encode()):
        raise CompExportError(
            f"{where} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, "
            "or fetch the file with `hf download`"
        )


def parse_json(text: str, where: str, remedy: str) -> Any:
    """Parse JSON text.

    Args:
        text: the text.
        where: its location for errors: ``path`` or ``path, line 3``.
        remedy: end of every error message.

    Raises:
        CompExportError: it is not JSON, is nested deeper than ``MAX_DEPTH``, or has a number that is not
            finite or half of a surrogate pair; names the field.
    """
    unusual: list[_NotFinite] = []

    def constant(written: str) -> _NotFinite:
        unusual.append(_NotFinite(written))
        return unusual[-1]

    def number(written: str) -> Any:
        value = float(written)
        return value if isfinite(value) else constant(written)

    try:
        parsed = json.loads(text, parse_constant=constant, parse_float=number)
    except RecursionError as error:
        raise _too_deep(where, remedy) from error
    except ValueError as error:
        raise CompExportError(f"{where} is not JSON ({error}): {remedy}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(parsed, MAX_DEPTH):
        raise _too_deep(where, remedy)
    if unusual:
        place = next(place for place, value in _values(parsed) if isinstance(value, _NotFinite))
        raise CompExportError(
            f"{where}: {place or 'the whole'} is {unusual[0].written[:40]}, not a finite number: {remedy}"
        )
    if _HALF_CHARACTER.search(text):
        _refuse_half_characters(parsed, where, remedy)
    return parsed


def read_json(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> Any:
    """Read the value in a JSON file.

    Raises:
        CompExportError: as ``read_text`` and ``parse_json``.
    """
    return parse_json(read_text(path, remedy, max_bytes), str(path), remedy)


def read_object(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        CompExportError: as ``read_json``, or the value is not an object.
    """
    value = read_json(path, remedy, max_bytes)
    if not isinstance(value, dict):
        raise CompExportError(f"{path} holds {kind_of(value)}, not an object: {remedy}")
    return value


def optional_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read the object in a JSON file, or an empty one if there is no file.

    Raises:
        CompExportError: as ``read_object``.
    """
    return read_object(path, remedy) if path.exists() else {}


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value with its article, as ``a list``."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else kinds.get(type(value), "a number")


class _NotFinite:
    """A number that JSON does not have, as written in the text."""

    def __init__(self, written: str) -> None:
        self.written = written


def _too_deep(where: str, remedy: str) -> CompExportError:
    return CompExportError(f"{where} is nested deeper than {MAX_DEPTH} levels: {remedy}")


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than ``levels``."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inside = [each.values() if isinstance(each, dict) else each for each in level]
        level = [one for each in inside for one in each if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _values(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and every value that is no container, with its path, as ``a.b[3]``."""
    waiting = [("", value)]
    while waiting:
        place, each = waiting.pop()
        if isinstance(each, dict):
            for key in each:
                yield f"a key of {place or 'the whole'}", key
            dot = "." if place else ""
            waiting += [(f"{place}{dot}{key}", one) for key, one in reversed(each.items())]
        elif isinstance(each, list):
            indexed = list(enumerate(each))
            waiting += [(f"{place}[{number}]", one) for number, one in reversed(indexed)]
        else:
            yield place, each


def _refuse_half_characters(value: Any, where: str, remedy: str) -> None:
    for place, each in _values(value):
        if isinstance(each, str) and any("\ud800" <= character <= "\udfff" for character in each):
            shown = place.encode("ascii", "backslashreplace").decode()
            raise CompExportError(
                f"{where}: {shown or 'the whole'} holds half of a surrogate pair, which is no "
                f"character: {remedy}"
            )


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")
