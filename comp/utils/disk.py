"""Report full disks and unwritable places clearly, before any work if possible."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from comp.errors import CompExportError

MIB = 2**20
LITTLE = 64 * MIB
UNSAID = 0  # writing was incomplete, and the library does not give a reason
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, UNSAID)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
# Messages of libraries without an error number: safetensors, torch's zip files, numpy's tofile.
SAID = (
    (re.compile(r"os error (\d+)"), None),
    (re.compile(r"No space left on device"), errno.ENOSPC),
    (re.compile(r"File too large"), errno.EFBIG),
    (re.compile(r"Read-only file system"), errno.EROFS),
    (re.compile(r"Permission denied"), errno.EACCES),
    (re.compile(r"inline_container\.cc|file write failed|iostream error"), UNSAID),
    (re.compile(r"requested and \d+ written"), UNSAID),
)
LONGEST_INSIDE = 96  # bytes of the longest path inside a directory that is written
AFFIX = len("..gone.12345678")  # bytes that a temporary name adds to the final one


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Convert errors of a full disk or an unwritable place to ones that name path, bytes and remedy.

    Includes errors of libraries (``SafetensorError``, torch's ``RuntimeError``).

    Args:
        path: the file or directory that is written.
        needed: bytes that will be written, if known.

    Raises:
        CompExportError: in place of those errors.
    """
    try:
        yield
    except (CompExportError, click.ClickException):
        raise
    except Exception as error:
        number = _number(error)
        if number in FULL:
            raise CompExportError(_full(path, needed, number)) from error
        if number not in (*REFUSED, *NO_PLACE):
            raise
        other = _other_file(error, path)
        if other is not None:
            raise CompExportError(
                f"cannot use {other}: {os.strerror(number)}; give the right to it, or move it away"
            ) from error
        verb, first = (
            ("write", "make it writable") if number in REFUSED else ("make", "move it away")
        )
        raise CompExportError(
            f"cannot {verb} {path}: {os.strerror(number)}; {_remedy(first, 'choose')}"
        ) from error


def check_room(path: Path, needed: int) -> None:
    """Refuse to write more than the disk has room for.

    Args:
        path: the file or directory that will be written.
        needed: bytes, in addition to existing files.

    Raises:
        CompExportError: fewer bytes are free.
    """
    if shutil.disk_usage(_existing_parent(path)).free < needed:
        raise CompExportError(_full(path, needed, errno.ENOSPC))


def bytes_of(value: Any) -> int:
    """Number of bytes of all tensors and arrays in a value, also in lists and dictionaries."""
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    return int(getattr(value, "nbytes", 0))


def check_place(path: Path) -> None:
    """Refuse a directory that cannot be created or written, before any work for it.

    Raises:
        CompExportError: it or a parent is a file, a broken link, or not writable; or the name is too long.
    """
    place = path.absolute()
    _check_length(path, place)
    above = [place, *place.parents]
    there = next(each for each in above if each.is_symlink() or each.exists())
    choose = _remedy("move it away", "choose")
    if there.is_symlink() and not there.exists():
        raise CompExportError(
            f"{there} is a link to {there.readlink()}, which is not there: {choose}"
        )
    if not there.is_dir():
        below = "" if there == place else f", and {path} lies below it"
        raise CompExportError(f"{there} is a file{below}: {choose}")
    with disk_errors(path):
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        tempfile.TemporaryFile(dir=there).close()  # also on a file system that is read-only


def check_file_place(path: Path) -> None:
    """Refuse a file that cannot be written, before any work for it.

    Raises:
        CompExportError: as ``check_place``; or a directory or a broken link has that name.
    """
    _check_length(path, path.absolute())
    choose = _remedy("move it away", "choose")
    if path.is_symlink() and not path.exists():
        raise CompExportError(
            f"{path} is a link to {path.readlink()}, which is not there: {choose}"
        )
    if path.is_dir():
        raise CompExportError(f"{path} is a directory, and a file is written there: {choose}")
    check_place(path.parent)


def _other_file(error: Exception, path: Path) -> str | None:
    """Return the file that an error names, if it is neither ``path`` nor a temporary name of it."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike) or path.name in os.fspath(name):
        return None
    place = Path(name)
    return None if place in path.absolute().parents or place in path.parents else str(place)


def _number(error: Exception) -> int | None:
    """Return the system's error number of an error, if it is known."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    for pattern, number in SAID:
        match = pattern.search(str(error))
        if match is not None:
            return int(match[1]) if number is None else number
    return None


def _full(path: Path, needed: int | None, number: int) -> str:
    left = shutil.disk_usage(_existing_parent(path)).free
    free = left // MIB
    if number == UNSAID and left < (needed or LITTLE):
        number = errno.ENOSPC
    needs = "" if needed is None else f"{-(-needed // MIB)} MiB are needed, "
    words = {
        errno.ENOSPC: "disk full",
        errno.EDQUOT: "quota exceeded",
        errno.EFBIG: "file too large for this system",
        UNSAID: "quota or limit reached",
    }
    return (
        f"{words[number]} while writing {path} ({needs}{free} MiB free): "
        f"{_remedy('free some space', 'choose')}"
    )


def _remedy(first: str, verb: str) -> str:
    """Return the remedy; commands with ``--out`` can also write elsewhere."""
    context = click.get_current_context(silent=True)
    has_out = context is not None and any(each.name == "out" for each in context.command.params)
    return f"{first}, or {verb} another place with --out" if has_out else first


def _check_length(path: Path, place: Path) -> None:
    there = _existing_parent(place)
    longest, whole = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    choose = _remedy("give a shorter one", "choose")
    for part in place.parts:
        most = longest - AFFIX if part == place.name else longest
        if len(os.fsencode(part)) > most:
            raise CompExportError(
                f"{part[:40]}… has {len(os.fsencode(part))} bytes, names here have {most} at the most: "
                f"{choose}"
            )
    if len(os.fsencode(place)) + LONGEST_INSIDE > whole:
        raise CompExportError(
            f"{str(path)[:40]}… is too long, paths here have {whole - LONGEST_INSIDE} bytes at the most: "
            f"{choose}"
        )


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        with suppress(OSError):  # a name that is too long
            if parent.exists():
                return parent
    return Path(path.absolute().anchor)
