"""Write files atomically, so that no reader sees a partial one; read only regular files."""

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

OLD, GONE = "old", "gone"  # in the hidden names of files being replaced, and of those being removed


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; rename it to ``path`` at the end of the block.

    The temporary file is removed if the block raises.

    Raises:
        CompExportError: the disk is full, or has less than ``needed`` bytes free; or the place cannot be
            written.
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
    """Yield a temporary directory next to ``path``; it replaces ``path`` at the end of the block.

    Raises:
        CompExportError: as ``writing``.
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
            if old is not None:
                # Under a name that ``sweep`` removes: a half-removed directory must not be restored.
                remove(old.rename(old.with_name(old.name.replace(f".{OLD}.", f".{GONE}."))))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def move_away(path: Path, name: str = OLD) -> Path | None:
    """Move a file or directory atomically into a hidden one next to it; ``None`` if there is none.

    After a kill, ``sweep`` restores it, or removes it if ``name`` is ``GONE``.
    """
    if not (path.exists() or path.is_symlink()):
        return None
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.{name}.", dir=path.parent))
    path.replace(old / path.name)
    return old


def discard(path: Path) -> None:
    """Remove a file or directory atomically: after a kill it is complete or gone."""
    with disk_errors(path):
        gone = move_away(path, GONE)
        if gone is not None:
            remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, names: str) -> None:
    """Remove temporary files and directories that killed processes left.

    Files that were moved away and not yet replaced are restored. Call only while no other process writes
    there.

    Args:
        folder: folder to clean.
        names: names of files and directories that may be written there, as a regular expression.
    """
    if not folder.is_dir():
        return
    left = re.compile(rf"\.(?P<name>{names})\.(?:(?P<kind>{OLD}|{GONE})\.)?[a-z0-9_]{{8}}")
    with disk_errors(folder):
        for path in sorted(folder.iterdir()):
            match = left.fullmatch(path.name)
            if match is None:
                continue
            place, was = folder / match["name"], path / match["name"]
            if match["kind"] == OLD and was.exists() and not place.exists():
                was.replace(place)
            remove(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_regular(path: Path, what: str, remedy: str, max_bytes: int) -> bytes:
    """Read a whole regular file.

    A pipe, a device or a folder is refused, also if it replaces the file between checking and opening: a
    pipe would block forever, a device may be endless.

    Args:
        path: path of the file.
        what: name of its content for errors, as ``image``.
        remedy: end of error messages, as ``name an image file``.
        max_bytes: larger files are refused, unread.

    Raises:
        CompExportError: the file cannot be read, is no regular file, or is too large.
    """
    try:
        _check_regular(path.stat(), path, what, remedy)
        # If it is a pipe by now, opening does not block.
        handle = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_BINARY"))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            _check_regular(status, path, what, remedy)
            data = file.read(status.st_size + 1) if status.st_size <= max_bytes else b""
            if len(data) > status.st_size:  # it grows, or reports a size of 0 as files of /proc do
                data += file.read(max(0, max_bytes + 1 - len(data)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompExportError(f"cannot read {what} {path}: {reason}; {remedy}") from error
    if max(status.st_size, len(data)) > max_bytes:
        size = max(status.st_size, len(data))
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


def _check_regular(status: os.stat_result, path: Path, what: str, remedy: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise CompExportError(f"cannot read {what} {path}: it is {kind}, not a file; {remedy}")


def _flag(name: str) -> int:
    """Return a flag of ``os.open``, 0 if this system does not have it."""
    return int(getattr(os, name, 0))
