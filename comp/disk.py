"""Saying what a full disk lacks or why a place cannot be written, before any work where that can be known."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from comp.errors import CompExportError

MIB = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
# What libraries say instead of a number: safetensors, torch's zip files, numpy's tofile.
SAID = (
    (re.compile(r"os error (\d+)"), None),
    (re.compile(r"No space left on device"), errno.ENOSPC),
    (re.compile(r"File too large"), errno.EFBIG),
    (re.compile(r"Read-only file system"), errno.EROFS),
    (re.compile(r"Permission denied"), errno.EACCES),
    (re.compile(r"PytorchStreamWriter failed|file write failed|iostream error"), errno.ENOSPC),
    (re.compile(r"requested and \d+ written"), errno.ENOSPC),
)
LONGEST_INSIDE = 96  # bytes of the longest path inside what is written
AFFIX = len("..gone.12345678")  # bytes that a temporary name is longer than the one it stands for


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a full disk or an unwritable place into an error that names path, bytes and remedy.

    Libraries have errors of their own for it (``SafetensorError``, torch's ``RuntimeError``): these too.

    Args:
        path: that is written.
        needed: bytes that will be written, where that is known.
    """
    try:
        yield
    except (CompExportError, click.ClickException):
        raise
    except Exception as error:
        number = _number(error)
        if number in FULL:
            raise CompExportError(_full(path, needed, number)) from error
        if number in REFUSED:
            raise CompExportError(
                f"cannot write {path}: {os.strerror(number)}; {_remedy('make it writable', 'choose')}"
            ) from error
        if number in NO_PLACE:
            raise CompExportError(
                f"cannot make {path}: {os.strerror(number)}; {_remedy('give another place', 'choose')}"
            ) from error
        raise


def check_place(path: Path) -> None:
    """Refuse a directory that cannot be made or written, before any work for it.

    Raises:
        CompExportError: it or what it lies in is a file, a link to nothing, or cannot be written; or the name
            is too long.
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


def _number(error: Exception) -> int | None:
    """What the system says was wrong, as far as an error tells."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    for pattern, number in SAID:
        found = pattern.search(str(error))
        if found is not None:
            return int(found[1]) if number is None else number
    return None


def _full(path: Path, needed: int | None, number: int) -> str:
    free = shutil.disk_usage(_existing_parent(path)).free // MIB
    wanted = "" if needed is None else f"{-(-needed // MIB)} MiB are needed, "
    words = {
        errno.ENOSPC: "disk full",
        errno.EDQUOT: "quota exceeded",
        errno.EFBIG: "file too large for this system",
    }
    return (
        f"{words[number]} while writing {path} ({wanted}{free} MiB free): "
        f"{_remedy('free some space', 'choose')}"
    )


def _remedy(first: str, verb: str) -> str:
    """What to do; verbs that have ``--out`` can also write elsewhere."""
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
