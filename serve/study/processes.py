"""Run the steps of a cell in processes of their own, so that a failure does not end the study."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from comp.errors import CompExportError
from comp.utils.disk import disk_errors
from comp.utils.tied import tied

PACKAGES = Path(__file__).resolve().parents[2]
_RUNNING: "set[subprocess.Popen[str]]" = set()


class StepError(CompExportError):
    """A step failed; the message is the last line of its output."""


def run_process(
    words: Sequence[str], log: Path, lock: int | None, threads: int | None = None
) -> str:
    """Run a command to its end; its standard error is appended to ``log``.

    If the wait is interrupted (by Ctrl-C, say), the process and its children are killed.

    Args:
        words: the command.
        log: file.
        lock: an open file that the process inherits; without one, as on a cluster's worker, the process ends
            with this one.
        threads: for its computations; by default no limit.

    Returns:
        Its standard output.

    Raises:
        StepError: its exit status is not 0.
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
            words if lock is not None else tied(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # Ctrl-C reaches only the study, which then kills the process
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
    """Kill the processes that ``run_process`` runs in other threads."""
    for process in tuple(_RUNNING):
        with suppress(ProcessLookupError):  # ended already
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that no process is left running."""

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
    with suppress(ProcessLookupError):  # ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_word(output: str, status: int) -> str:
    """The last line of a process's output, or the signal that ended it."""
    if status < 0:
        name = signal.Signals(-status).name
        memory = ": not enough memory?" if -status == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else f"exit status {status}"
