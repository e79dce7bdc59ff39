"""Reading JSON that others wrote: bounded, in UTF-8, and refused with the name of file and field.

Text starts with a byte order mark or without one. A file has to be a regular one, and of a size that
its kind can have: neither a FIFO nor ``/dev/zero`` is waited for.
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
POINTER = "version https://git-lfs.github.com/spec/"  # what Git LFS leaves in place of a file
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # byte order marks
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> str:
    """The text of a regular file, without its byte order mark.

    Args:
        path: of the file.
        remedy: ends every refusal.
        max_bytes: that are read.

    Raises:
        CompExportError: the file is missing, no regular file, too large, a Git LFS pointer, or not
            UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CompExportError(f"{path} is {_kind(found.st_mode)}, not a file: {remedy}")
        if found.st_size > max_bytes:
            raise CompExportError(
                f"{path} has {found.st_size} bytes, and {max_bytes} are the most that such a file "
                f"may have: {remedy}"
            )
        with path.open("rb") as file:
            held = file.read(min(found.st_size, max_bytes) + 1)
    except OSError as error:
        raise CompExportError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    return decoded(held, str(path), remedy)


def decoded(held: bytes, where: str, remedy: str) -> str:
    """Bytes of a file as text, without a byte order mark; ``where`` names them in errors.

    Raises:
        CompExportError: a Git LFS pointer, UTF-16, or not UTF-8 otherwise.
    """
    refuse_pointer(held, where)
    if held.startswith(UTF_16):
        raise CompExportError(f"{where} is UTF-16 text: save it as UTF-8, or {remedy}")
    try:
        return held.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CompExportError(
            f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8, or {remedy}"
        ) from error


def refuse_pointer(start: bytes, where: str) -> None:
    """Refuse the first bytes of a file when they are those of a Git LFS pointer."""
    if start.startswith(POINTER.encode()):
        raise CompExportError(
            f"{where} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, "
            "or fetch the file with `hf download`"
        )


def parse_json(text: str, where: str, remedy: str) -> Any:
    """The value that JSON text holds.

    Args:
        text: in JSON.
        where: it stands, for errors: ``path`` or ``path, line 3``.
        remedy: ends every refusal.

    Raises:
        CompExportError: no JSON, nested deeper than ``MAX_DEPTH``, a number that is not finite, or text
            with half of a surrogate pair; names the field.
    """
    unusual: list[_NotFinite] = []

    def constant(written: str) -> _NotFinite:
        unusual.append(_NotFinite(written))
        return unusual[-1]

    def number(written: str) -> Any:
        value = float(written)
        return value if isfinite(value) else constant(written)

    try:
        found = json.loads(text, parse_constant=constant, parse_float=number)
    except RecursionError as error:
        raise _too_deep(where, remedy) from error
    except ValueError as error:
        raise CompExportError(f"{where} is not JSON ({error}): {remedy}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(found, MAX_DEPTH):
        raise _too_deep(where, remedy)
    if unusual:
        place = next(place for place, value in _values(found) if isinstance(value, _NotFinite))
        raise CompExportError(
            f"{where}: {place or 'the whole'} is {unusual[0].written[:40]}, not a finite number: {remedy}"
        )
    if _HALF_CHARACTER.search(text):
        _refuse_half_characters(found, where, remedy)
    return found


def read_json(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        CompExportError: as ``read_text`` and ``parse_json`` do.
    """
    return parse_json(read_text(path, remedy, max_bytes), str(path), remedy)


def read_object(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CompExportError: as ``read_json`` does, and when it is something other than an object.
    """
    found = read_json(path, remedy, max_bytes)
    if not isinstance(found, dict):
        raise CompExportError(f"{path} holds {kind_of(found)}, not an object: {remedy}")
    return found


def optional_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file, or an empty one when the file is not there.

    Raises:
        CompExportError: as ``read_object`` does.
    """
    return read_object(path, remedy) if path.exists() else {}


def kind_of(value: Any) -> str:
    """The kind of a JSON value, with its article: ``a list``."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else kinds.get(type(value), "a number")


class _NotFinite:
    """A number that JSON does not have, as it is written."""

    def __init__(self, written: str) -> None:
        self.written = written


def _too_deep(where: str, remedy: str) -> CompExportError:
    return CompExportError(f"{where} is nested deeper than {MAX_DEPTH} levels: {remedy}")


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand inside each other more than so often."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inside = [each.values() if isinstance(each, dict) else each for each in level]
        level = [one for each in inside for one in each if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _values(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value that is no container, and every key, with the place of each: ``a.b[3]``."""
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
