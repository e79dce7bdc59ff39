"""One process at a time in a directory: a lock that says who holds it and is free when its holder dies.

The file ``.lock`` names the holder: process, host, since when, what it does. The kernel's own lock on
that file (``flock``) says whether the holder lives, however it ended; a file that a killed process left is
taken over. Where the file system has no such locks, the holder is looked up by its number and the time it
started, as numbers are used again. A file that this machine left before it was started anew is taken over;
what another machine left cannot be judged from here and is refused with the remedy.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from comp.errors import CompExportError
from comp.utils.disk import check_place, disk_errors

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TRIES = 16  # the file may be removed by its holder between opening and locking it
SOON = 0.05  # seconds in which who has just taken the lock writes who it is
CLOCK = 2.0  # seconds by which two readings of a process's start may differ
RANKS = (
    "RANK",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
)  # as accelerate reads them


class Owner(BaseModel):
    """Who holds a lock.

    Attributes:
        pid: its process.
        host: the machine's name.
        boot: of the running kernel: containers of a machine share it, whatever their host names.
        started: when the process started, in seconds since 1970.
        doing: the verb.
        since: when it took the lock, local time.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    boot: str
    started: float
    doing: str
    since: str

    @classmethod
    def myself(cls, doing: str) -> "Owner":
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(
            pid=pid,
            host=socket.gethostname(),
            boot=_boot(),
            started=_started(pid) or 0.0,
            doing=doing,
            since=now,
        )

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine: of the running kernel, or of one before it."""
        mine, same_name = _boot(), self.host == socket.gethostname()
        if not self.boot or not mine:
            return same_name
        return self.boot == mine or (same_name and self.started < _booted())

    @property
    def lives(self) -> bool:
        """Of one that is here: whether that very process runs."""
        started = _started(self.pid)
        return started is not None and abs(started - self.started) < CLOCK

    def __str__(self) -> str:
        return (
            f"`{self.doing}` works there since {self.since}, process {self.pid} on host {self.host}"
        )


@contextmanager
def locked(directory: Path, doing: str) -> Iterator[int]:
    """Hold a directory's lock; yield its open file, which keeps the lock in every process that inherits it.

    The directory is made where it is missing, and removed again if nothing was put into it.

    Args:
        directory: nobody else may work in.
        doing: what this process does, for those who are refused.

    Raises:
        CompExportError: another process works there (named with its host), or the place cannot be written.
    """
    check_place(directory)
    made = _make(directory)
    path = directory / LOCK
    try:
        file = _take(path, directory)
        try:
            _write(file, path, Owner.myself(doing))
            yield file
        finally:
            with suppress(OSError):
                if _is_open(file, path):
                    path.unlink()
            os.close(file)
    finally:
        for each in made:
            with suppress(OSError):  # something is in it
                each.rmdir()


def is_first_process() -> bool:
    """Whether this process speaks for all those that were launched with it (``accelerate launch``)."""
    ranks = (os.environ.get(name) for name in RANKS)
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def process_lives(number: str) -> bool:
    """Whether a process of that number runs here."""
    return number.isdecimal() and _started(int(number)) is not None


def _make(directory: Path) -> list[Path]:
    """The directories that had to be made, the innermost first."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path, directory: Path) -> int:
    """The lock's file, open and locked."""
    for _ in range(TRIES):
        with disk_errors(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            by_kernel = _lock(file)
            if by_kernel is None:
                raise _in_use(directory, _named(file))
            if not _is_open(file, path):
                os.close(file)
                continue
            owner = _read(file)
            if owner is not None and not owner.is_here:
                raise CompExportError(
                    f"{directory} is in use: {owner}, which cannot be looked up from here: wait for it "
                    f"or end it; if it is over, delete {path}"
                )
            if owner is not None and not by_kernel and owner.lives:
                raise _in_use(directory, owner)
        except BaseException:
            with suppress(OSError):
                os.close(file)
            raise
        return file
    raise _in_use(directory, None)


def _in_use(directory: Path, owner: Owner | None) -> CompExportError:
    who = "another process works there" if owner is None else str(owner)
    return CompExportError(
        f"{directory} is in use: {who} (or one that it started): wait for it or end it, or choose another "
        "directory"
    )


def _lock(file: int) -> bool | None:
    """Whether the kernel locked it; false where it has no locks there, ``None`` where another has this."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _is_open(file: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read(file: int) -> Owner | None:
    """Who wrote the file; ``None`` where nobody did, or not to the end."""
    try:
        return Owner.model_validate_json(os.pread(file, 4096, 0))
    except ValidationError:
        return None


def _named(file: int) -> Owner | None:
    """Who holds the lock, who may be about to write that."""
    for _ in range(TRIES):
        owner = _read(file)
        if owner is not None:
            return owner
        time.sleep(SOON)
    return None


def _write(file: int, path: Path, owner: Owner) -> None:
    with disk_errors(path):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{owner.model_dump_json()}\n".encode(), 0)


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""  # no Linux


def _booted() -> float:
    """When the running kernel started, in seconds since 1970."""
    import psutil

    return float(psutil.boot_time())


def _started(pid: int) -> float | None:
    """When a process started; ``None`` where there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
