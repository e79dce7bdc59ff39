"""Rendering a chat template with a limit of time, memory and length.

A template is a program that came with a checkpoint. The sandbox keeps it from files and from Python,
not from loops without end or texts without end, and Python cannot stop a thread. So templates are
rendered by one process of their own, which renders for all threads in turn, is started when the first
template is rendered, and is started anew when a template ended it.

The limits are of processor time and of memory (POSIX; on macOS of time alone, elsewhere only the time
on the clock) and of the length of the text. They do not cover what a template writes.
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
PATIENCE = 60.0  # seconds on the clock
BYTES = 512 * 2**20  # of memory, the interpreter's own included
CHARACTERS = 2**22  # of a rendered prompt
START = "import sys; sys.path[:] = sys.argv[1:]; from comp.checkpoints.template_worker import main; main()"


class TemplateFailed(Exception):  # noqa: N818, read as a sentence
    """The failure of a template, to be read after "the template"."""


@dataclass(frozen=True)
class Rendering:
    """A template's source, the special tokens it may name, and a conversation."""

    source: str
    tokens: dict[str, str]
    messages: list[dict[str, Any]]


class TemplateProcess:
    """The process, and one request at a time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """``seconds`` of processor time for one prompt."""
        self._seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, asked: Rendering) -> str:
        """The text of a conversation.

        Raises:
            TemplateFailed: the template fails or meets a limit.
        """
        with self._lock:
            process = self._running()
            patience = Timer(PATIENCE, process.kill)
            patience.daemon = True
            patience.start()
            try:
                line = _exchange(process, json.dumps(asdict(asked)))
            except BaseException:  # interrupted: its answer is not that of the next request
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
        """Leave the process to whom it belongs: this one is a fork of that."""
        self._lock, self._process = Lock(), None

    def _running(self) -> "subprocess.Popen[str]":
        found = self._process
        if found is None or found.poll() is not None:
            if find_spec("jinja2") is None:
                raise TemplateFailed(
                    "cannot be rendered without the package jinja2 (3.1.6 or newer)"
                )
            limits = {"seconds": self._seconds, "bytes": BYTES, "characters": CHARACTERS}
            try:
                found = subprocess.Popen(
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
            self._process = found
            _exchange(found, json.dumps(limits), answered=False)
        return found

    def _ended(self, status: int) -> str:
        """The failure of a template that ended the process, by its exit status."""
        virtual = getattr(signal, "SIGVTALRM", None)
        if virtual is not None and status == -virtual:
            return f"takes more than {self._seconds:g} seconds"
        if status < 0 and status == -getattr(signal, "SIGKILL", 0):
            return f"takes more than {PATIENCE:g} seconds, or more memory than it may"
        return f"ended the process that rendered it (exit status {status})"


def _exchange(process: "subprocess.Popen[str]", line: str, answered: bool = True) -> str:
    """Send a line; the line that comes back, without its end when the process ended."""
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


def rendered(asked: Rendering) -> str:
    """The text of a conversation in a template.

    Raises:
        TemplateFailed: the template fails or meets a limit.
    """
    return _PROCESS.render(asked)
