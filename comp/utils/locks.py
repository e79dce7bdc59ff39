"""Lock a directory for one process; the lock names its holder and is released when the holder dies.

The file ``.lock`` names the holder: process, host, start time, command. The kernel's lock on that file
(``flock``) tells whether the holder is alive, however it ended; the file of a killed process is taken over.
If the file system has no such locks, the holder is looked up by its process id and start time, as ids are
reused. A file from before a reboot of this machine is taken over. A file of another machine cannot be
checked, and is refused with the remedy.
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
TRIES = 16  # its holder may remove the file between opening and locking
SOON = 0.05  # seconds to wait until a new holder has written its name
CLOCK = 2.0  # seconds by which two readings of a process's start time may differ
RANKS = (
    "RANK",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
)  # as accelerate reads them


class Owner(BaseModel):
    """The holder of a lock.

    Attributes:
        pid: process id.
        host: name of the machine.
        boot: boot id of the kernel; containers of a machine share it, whatever their host names.
        started: start time of the process, in seconds since 1970.
        doing: the command.
        since: local time at which it took the lock.
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
        """Whether it is a process of this machine, since the last boot or from before it."""
        mine, same_name = _boot(), self.host == socket.gethostname()
        if not self.boot or not mine:
            return same_name
        return self.boot == mine or (same_name and self.started < _booted())

    @property
    def lives(self) -> bool:
        """Whether exactly this process is running; only for processes of this machine."""
        started = _started(self.pid)
        return started is not None and abs(started - self.started) < CLOCK

    def __str__(self) -> str:
        return (
            f"`{self.doing}` works there since {self.since}, process {self.pid} on host {self.host}"
        )


@contextmanager
def locked(directory: Path, doing: str) -> Iterator[int]:
    """Hold a directory's lock; yield its open file, which keeps the lock in processes that inherit it.

    A missing directory is created, and removed again if it stays empty.

    Args:
        directory: the directory to lock.
        doing: the command of this process, for the error of others.

    Raises:
        CompExportError: another process holds the lock (names it and its host), or the place cannot be
            written.
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
    """Whether this is the first of the processes launched together (``accelerate launch``)."""
    ranks = (os.environ.get(name) for name in RANKS)
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def process_lives(number: str) -> bool:
    """Whether a process with this id is running on this machine."""
    return number.isdecimal() and _started(int(number)) is not None


def _make(directory: Path) -> list[Path]:
    """Create a directory; return those that had to be created, the innermost first."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path, directory: Path) -> int:
    """Open and lock the lock's file."""
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
    """Lock by the kernel: true if locked, false without such locks, ``None`` if another has the lock."""
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
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read(file: int) -> Owner | None:
    """Return the holder that the file names; ``None`` if it is empty or incomplete."""
    try:
        return Owner.model_validate_json(os.pread(file, 4096, 0))
    except ValidationError:
        return None


def _named(file: int) -> Owner | None:
    """Return the holder of the lock, waiting briefly until it has written its name."""
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
    """Start time of the running kernel, in seconds since 1970."""
    import psutil

    return float(psutil.boot_time())


def _started(pid: int) -> float | None:
    """Start time of a process, in seconds since 1970; ``None`` if there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
