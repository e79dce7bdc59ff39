"""Check the files of a checkpoint directory: regular files, within the directory, no Git LFS pointers."""

import stat
from pathlib import Path

from comp.errors import CompExportError
from comp.utils.json_files import refuse_pointer

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
POINTER_BYTES = 1024  # more than a pointer has
BLOBS, REPOSITORY = "blobs", "models--"  # folders of the hub's cache that its links lead to


def check_files(directory: Path) -> None:
    """Check every file of a checkpoint before any is read.

    Raises:
        CompExportError: names a file that is no regular file, leads out of the directory, or is a Git LFS
            pointer.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
    except OSError as error:
        raise CompExportError(
            f"cannot read {directory}: {error.strerror}; pass the directory of a checkpoint"
        ) from error
    for path in paths:
        if not path.is_dir():
            check_file(path, directory)


def check_file(path: Path, directory: Path) -> None:
    """Check one file of ``directory`` as ``check_files`` does. Links into the hub's cache are allowed."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CompExportError(f"{path} is not a regular file: fetch the checkpoint again")
        if path.is_symlink() and not _may_lead_to(path.resolve(), directory.resolve()):
            raise CompExportError(
                f"{path} is a link that leads out of the checkpoint, to {path.resolve()}: put the file "
                "itself there"
            )
        if status.st_size < POINTER_BYTES:
            with path.open("rb") as file:
                refuse_pointer(file.read(POINTER_BYTES), str(path))
    except OSError as error:
        raise CompExportError(
            f"cannot read {path}: {error.strerror}; fetch the checkpoint again"
        ) from error


def _may_lead_to(target: Path, directory: Path) -> bool:
    cached = target.parent.name == BLOBS and target.parent.parent.name.startswith(REPOSITORY)
    return cached or target.is_relative_to(directory)
