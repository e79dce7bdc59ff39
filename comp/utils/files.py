"""Writing files so that a reader never meets half of one; reading what is a file indeed."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comp.errors import CompExportError
from comp.utils.disk import check_room, disk_errors

OLD, GONE = "old", "gone"  # in the names of what is being replaced, and of what is being removed


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block ends well.

    The temporary file is removed when the block raises. Raises ``CompExportError`` for a full disk
    and an unwritable place; ``needed`` bytes are named then, and refused at once where they are not free.
    """
    with disk_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path, needed or 0)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; it replaces ``path`` when the block ends well.

    Raises ``CompExportError`` as ``writing`` does.
    """
    with disk_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path, needed or 0)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            old = move_away(path)
            temporary.replace(path)
            if (
                old is not None
            ):  # by another name, as what was begun to be removed is never put back
                remove(old.rename(old.with_name(old.name.replace(f".{OLD}.", f".{GONE}."))))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def move_away(path: Path, name: str = OLD) -> Path | None:
    """Rename a file or directory at once into a hidden one beside it; ``None`` where nothing is there.

    What a kill leaves there ``sweep`` puts back, or removes where ``name`` is ``GONE``.
    """
    if not (path.exists() or path.is_symlink()):
        return None
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.{name}.", dir=path.parent))
    path.replace(old / path.name)
    return old


def discard(path: Path) -> None:
    """Remove a file or directory so that a kill leaves all of it or nothing under its name."""
    with disk_errors(path):
        gone = move_away(path, GONE)
        if gone is not None:
            remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, names: str) -> None:
    """Remove what killed processes left of files and directories that they were writing.

    What was moved away by one that was killed before its new one took the place is put back. Only while no
    other process writes there.

    Args:
        folder: to look into.
        names: of what may be written there, as a regular expression.
    """
    if not folder.is_dir():
        return
    left = re.compile(rf"\.(?P<name>{names})\.(?:(?P<kind>{OLD}|{GONE})\.)?[a-z0-9_]{{8}}")
    with disk_errors(folder):
        for path in sorted(folder.iterdir()):
            found = left.fullmatch(path.name)
            if found is None:
                continue
            place, was = folder / found["name"], path / found["name"]
            if found["kind"] == OLD and was.exists() and not place.exists():
                was.replace(place)
            remove(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_regular(path: Path, what: str, remedy: str, max_bytes: int) -> bytes:
    """Read a regular file whole.

    A pipe, a device or a folder is refused without being opened, and so is one that takes the file's
    place before it is open: a pipe would wait for ever, a device may have no end.

    Args:
        path: of the file.
        what: it is, for errors: ``image``.
        remedy: ends the error, as in ``name an image file``.
        max_bytes: more are refused, unread.

    Raises:
        CompExportError: for what cannot be read, is no regular file, or is too large.
    """
    try:
        _check_regular(path.stat(), path, what, remedy)
        # Were it a pipe by now, opening would not wait.
        handle = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_BINARY"))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            _check_regular(found, path, what, remedy)
            data = file.read(found.st_size + 1) if found.st_size <= max_bytes else b""
            if len(data) > found.st_size:  # it grows, or says as those of /proc that it is empty
                data += file.read(max(0, max_bytes + 1 - len(data)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompExportError(f"cannot read {what} {path}: {reason}; {remedy}") from error
    if max(found.st_size, len(data)) > max_bytes:
        size = max(found.st_size, len(data))
        raise CompExportError(
            f"{what} {path} is too large ({size} bytes, {max_bytes} at most): {remedy}"
        )
    return data


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_regular(found: os.stat_result, path: Path, what: str, remedy: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise CompExportError(f"cannot read {what} {path}: it is {kind}, not a file; {remedy}")


def _flag(name: str) -> int:
    """A flag of ``os.open``, 0 where this system has none."""
    return int(getattr(os, name, 0))
