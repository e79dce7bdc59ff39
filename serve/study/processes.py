"""Steps of a cell, each in a process of its own, so that one that fails or is ended harms nothing."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from comp.errors import CompExportError
from comp.utils.disk import disk_errors

PACKAGES = Path(__file__).resolve().parents[2]
_RUNNING: "set[subprocess.Popen[str]]" = set()


class StepError(CompExportError):
    """A step ended badly; the message is its last word."""


def run_process(words: Sequence[str], log: Path, lock: int, threads: int | None = None) -> str:
    """Run a command to its end; its standard error is added to ``log``.

    Whatever ends the wait (Ctrl-C, say) ends the process and all that it started.

    Args:
        words: the command.
        log: file.
        lock: an open file that the process keeps open.
        threads: that it may compute with; by default as many as it likes.

    Returns:
        Its standard output.

    Raises:
        StepError: it ended with another status than 0.
    """
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        errors = log.open("a+", encoding="utf-8", errors="replace")
    with errors:
        began = errors.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches the study alone, which then ends the process
        )
        _RUNNING.add(process)
        try:
            out, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
        finally:
            _RUNNING.discard(process)
        if process.returncode == 0:
            return out
        errors.seek(began)
        raise StepError(_last_word(errors.read(), process.returncode))


def end_processes() -> None:
    """End what other threads' ``run_process`` runs now."""
    for process in tuple(_RUNNING):
        with suppress(ProcessLookupError):  # over already
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP what Ctrl-C is, so that no process is left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.signal(kind, interrupt) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):  # over already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_word(said: str, status: int) -> str:
    """The last line of what a process said, or what ended it."""
    if status < 0:
        name = signal.Signals(-status).name
        memory = ": not enough memory?" if -status == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else f"exit status {status}"
