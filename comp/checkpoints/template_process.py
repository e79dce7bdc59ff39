"""Render chat templates with limits on time, memory and length.

A template is a program that comes with a checkpoint. The sandbox keeps it away from files and Python, but
does not prevent endless loops or endless texts, and Python cannot stop a thread. Therefore one separate
process renders templates, for all threads in turn. It is started for the first template, and again after a
template has ended it.

The limits are on processor time and memory (POSIX; on macOS only time, elsewhere only wall-clock time) and
on the length of the text. The content of the text is not checked.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from threading import Lock, Timer
from typing import Any

SECONDS = 5.0  # of processor time for one prompt
PATIENCE = 60.0  # seconds of wall-clock time
BYTES = 512 * 2**20  # of memory, including the interpreter's own
CHARACTERS = 2**22  # of a rendered prompt
START = "import sys; sys.path[:] = sys.argv[1:]; from comp.checkpoints.template_worker import main; main()"


class TemplateFailed(Exception):  # noqa: N818, read as a sentence
    """Failure of a template; the message completes "the template …"."""


@dataclass(frozen=True)
class Rendering:
    """A template's source, the special tokens that it may use, and a conversation."""

    source: str
    tokens: dict[str, str]
    messages: list[dict[str, Any]]


class TemplateProcess:
    """The rendering process; it handles one request at a time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Set the limit of processor time for one prompt, in seconds."""
        self._seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, rendering: Rendering) -> str:
        """Render a conversation.

        Raises:
            TemplateFailed: the template fails or exceeds a limit.
        """
        with self._lock:
            process = self._running()
            patience = Timer(PATIENCE, process.kill)
            patience.daemon = True
            patience.start()
            try:
                line = _exchange(process, json.dumps(asdict(rendering)))
            except BaseException:  # interrupted: the pending answer must not go to the next request
                self._process = None
                process.kill()
                raise
            finally:
                patience.cancel()
            if not line.endswith("\n"):
                self._process = None
                raise TemplateFailed(self._ended(process.wait()))
        answer: dict[str, str] = json.loads(line)
        if "failed" in answer:
            raise TemplateFailed(answer["failed"])
        return answer["text"]

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.communicate()

    def forget(self) -> None:
        """Drop the process after a fork: it belongs to the parent."""
        self._lock, self._process = Lock(), None

    def _running(self) -> "subprocess.Popen[str]":
        process = self._process
        if process is None or process.poll() is not None:
            if find_spec("jinja2") is None:
                raise TemplateFailed(
                    "cannot be rendered without the package jinja2 (3.1.6 or newer)"
                )
            limits = {"seconds": self._seconds, "bytes": BYTES, "characters": CHARACTERS}
            try:
                process = subprocess.Popen(
                    [sys.executable or "python3", "-I", "-c", START, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="ascii",
                )
            except OSError as error:
                raise TemplateFailed(
                    f"cannot be rendered: no process can be started for it ({error.strerror})"
                ) from error
            self._process = process
            _exchange(process, json.dumps(limits), answered=False)
        return process

    def _ended(self, status: int) -> str:
        """Return the failure of a template that ended the process, by its exit status."""
        virtual = getattr(signal, "SIGVTALRM", None)
        if virtual is not None and status == -virtual:
            return f"takes more than {self._seconds:g} seconds"
        if status < 0 and status == -getattr(signal, "SIGKILL", 0):
            return f"takes more than {PATIENCE:g} seconds, or more memory than it may"
        return f"ended the process that rendered it (exit status {status})"


def _exchange(process: "subprocess.Popen[str]", line: str, answered: bool = True) -> str:
    """Send a line and return the answer; without a line end if the process ended."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline() if answered else ""
    except OSError:  # it ended before it had read all
        return ""


_PROCESS = TemplateProcess()
atexit.register(_PROCESS.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forget)


def rendered(rendering: Rendering) -> str:
    """Render a conversation in a template.

    Raises:
        TemplateFailed: the template fails or exceeds a limit.
    """
    return _PROCESS.render(rendering)
