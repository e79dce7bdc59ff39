"""Writing files so that a reader never meets half of one; reading what is a file indeed."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comp.errors import CompExportError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable place into an error that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(_existing_parent(path)).free // 2**20
            raise CompExportError(
                f"disk full while writing {path} ({free} MiB free): free some space or pass --out"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CompExportError(
                f"cannot write {path}: {error.strerror}; choose another place with --out"
            ) from error
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block ends well.

    The temporary file is removed when the block raises. Raises ``CompExportError`` for a full disk
    and an unwritable place.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
def writing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; it replaces ``path`` when the block ends well."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                path.replace(old / path.name)
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
            # Files of some file systems (proc) say that they are empty.
            data = file.read(max_bytes + 1) if found.st_size <= max_bytes else b""
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


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
