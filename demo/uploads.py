"""The page's upload folder: visitors' files are kept there for a while, and no other file is opened."""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import time

from comp.data.images import check_image
from comp.errors import CompExportError

FOLDER_VARIABLE = "GRADIO_TEMP_DIR"  # where Gradio puts uploads; read when a page is built
PREFIX = "comp-export-page-"
LOCK = ".lock"
MAX_FILE_BYTES = 64 * 2**20
MAX_FOLDER_BYTES = 2**30
MAX_UPLOAD_PIXELS = 32_000_000
KEEP_SECONDS = 3600.0  # an upload unchanged for this time is deleted
UPLOAD_AGAIN = "upload the picture again"


@dataclass(frozen=True)
class Uploads:
    """The files that the page may open.

    Attributes:
        folder: resolved, readable by this user alone.
    """

    folder: Path

    def own(self, name: object) -> Path:
        """Resolve a file that a visitor names; only regular files inside the folder are allowed.

        Args:
            name: from outside.

        Returns:
            The file, resolved.

        Raises:
            CompExportError: for everything else; does not reveal whether it exists.
        """
        if not isinstance(name, str):
            raise CompExportError(f"a picture is named by text: {UPLOAD_AGAIN}")
        shown = name[-80:].encode("utf-8", "backslashreplace").decode()
        refusal = CompExportError(f"{shown} is no picture of this page: {UPLOAD_AGAIN}")
        path = Path(name)
        if not path.is_absolute() or not name.isprintable():
            raise refusal
        try:
            resolved = path.resolve()
            inside = resolved != self.folder and resolved.is_relative_to(self.folder)
            # A file outside is never accessed.
            if inside and resolved.name != LOCK and resolved.is_file():
                return resolved
        except (OSError, ValueError, RuntimeError):  # too long a name, a circle of links
            pass
        raise refusal

    def picture(self, name: object) -> Path:
        """As ``own``, for a picture within the limits of bytes and pixels."""
        path = self.own(name)
        try:
            check_image(path, MAX_FILE_BYTES, MAX_UPLOAD_PIXELS)
        except CompExportError as error:  # visitors know the file by its name only
            raise CompExportError(str(error).replace(str(path), path.name)) from error
        return path

    def files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """All files in the folder; files deleted meanwhile are left out."""
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.name != LOCK:
                    yield path, path.stat()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(status.st_size for _, status in self.files())

    def sweep(self, keep: frozenset[Path], seconds: float = KEEP_SECONDS) -> int:
        """Delete old files, and folders that have been empty for as long.

        Args:
            keep: files that the page itself shows.
            seconds: a file unchanged for longer is old.

        Returns:
            Number of deleted files.
        """
        old = [
            path
            for path, status in self.files()
            if path not in keep and time() - max(status.st_mtime, status.st_ctime) > seconds
        ]
        for folder in [path for path in self.folder.iterdir() if path.is_dir()]:
            with contextlib.suppress(OSError):
                if time() - folder.stat().st_mtime > seconds:  # an upload may just have made it
                    folder.rmdir()  # raises if it contains a file
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


@cache
def process_uploads() -> Uploads:
    """Create the folder of this process; it is removed when the process ends.

    Gradio reads its path from the environment. Folders of killed pages are removed.
    """
    place = Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir()).resolve()
    place.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    _hold(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[FOLDER_VARIABLE] = str(folder)
    return Uploads(folder)


def _hold(folder: Path) -> None:
    """Lock the folder until this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    made = folder / f"{LOCK}.new"
    handle = os.open(made, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    made.rename(folder / LOCK)  # it is visible only when locked


def remove_abandoned(place: Path) -> None:
    """Remove folders of this user's pages whose processes have ended."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: the page is alive
                shutil.rmtree(folder, ignore_errors=True)
