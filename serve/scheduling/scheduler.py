"""Continuous batching: read prompts as they come, and run one token of all running answers at a time.

Orca's iteration-level scheduling (Yu et al., OSDI 2022): an answer joins and leaves between two steps. All
graphs of one artifact run in one thread, so that the cores work on one thing at a time.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from comp.errors import CompExportError
from serve.engines.llava import Engine, Prepared
from serve.generation.options import GenerationOptions
from serve.scheduling.answering import Follower, Running

JOIN_SECONDS = 30.0  # a step takes less; the thread ends after it


class QueueFullError(CompExportError):
    """The queue has no room: try again later."""


class CancelledError(CompExportError):
    """The request was cancelled, or its deadline has passed."""


@dataclass
class Request:
    """A request in the scheduler.

    Attributes:
        prepared: the prompt and pixels.
        options: options of generation.
        follow: as ``Running.follow``; called with the exception that ends the request, too.
        deadline: time of ``time.monotonic`` after which it is cancelled.
    """

    prepared: Prepared
    options: GenerationOptions
    follow: Follower
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """End the request before the next step; its follower gets ``CancelledError``."""
        self.cancelled.set()

    @property
    def reason_to_end(self) -> CancelledError | None:
        """Why the request ends early; None if it goes on."""
        if self.cancelled.is_set():
            return CancelledError("the request was cancelled")
        if self.deadline is not None and monotonic() > self.deadline:
            return CancelledError("the deadline of the request has passed: give it more time")
        return None


@dataclass(frozen=True)
class Load:
    """Numbers of requests: those that wait, and those whose answers run."""

    waiting: int
    running: int


class Scheduler:
    """Runs the requests of one artifact in its thread.

    Args:
        engine: the artifact's engine; its backend has rows.
        rows: most answers at the same time.
        places: most tokens of a prompt with its answer.
        queue: most requests that wait.
        idle: called when the thread has nothing to do, for tests.

    Raises:
        CompExportError: the backend cannot run answers together.
    """

    def __init__(
        self,
        engine: Engine,
        rows: int,
        places: int,
        queue: int,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        made = engine.rows(rows, places)
        if made is None:
            raise CompExportError(
                f"{engine.backend} on {engine.provider} runs one answer at a time: take an artifact of the "
                "onnxruntime flavour on a CPU"
            )
        self.engine, self.places, self.queue = engine, places, queue
        self._rows, self._idle = made, idle
        self._waiting: deque[Request] = deque()
        self._running: list[tuple[Request, Running]] = []  # by row
        self._changed = threading.Condition()
        self._stopping = self._draining = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; its follower is called from the scheduler's thread.

        Raises:
            QueueFullError: the queue is full, or the scheduler drains.
            CompExportError: the prompt can never fit; names its size.
        """
        length = request.prepared.prompt.length
        if length >= self.places:
            raise CompExportError(
                f"the prompt has {length} tokens, and a prompt with its answer may have {self.places}: "
                "shorten it, give fewer images, or raise --max-tokens-per-request"
            )
        with self._changed:
            if self._draining or self._stopping:
                raise QueueFullError("the server is stopping: send the request to another one")
            if len(self._waiting) >= self.queue:
                raise QueueFullError(f"{self.queue} requests wait already: try again later")
            self._waiting.append(request)
            self._changed.notify()

    @property
    def load(self) -> Load:
        """Requests that wait and run now."""
        with self._changed:
            return Load(len(self._waiting), len(self._running))

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more requests and wait until all have ended; return whether they have."""
        with self._changed:
            self._draining = True
            self._changed.notify()
            return self._changed.wait_for(lambda: not self._waiting and not self._running, seconds)

    def stop(self) -> None:
        """End all requests after the present step, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(JOIN_SECONDS)

    def _loop(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._running:
                    self._changed.notify_all()  # who drains
                    self._idle()
                    self._changed.wait_for(lambda: self._waiting or self._running or self._stopping)
                if self._stopping:
                    break
            self._end_cancelled()
            self._admit()
            self._step()
        self._end_all(CancelledError("the server was stopped"))

    def _admit(self) -> None:
        """Read the next prompt, if a row is free: one before each step, so that answers keep coming."""
        with self._changed:
            if not self._waiting or len(self._running) == self._rows.rows:
                return
            request = self._waiting.popleft()
        try:
            started, answer = self.engine.begin(request.prepared, request.options, self.places)
            try:
                running = Running.start(
                    answer,
                    request.options,
                    started.timings,
                    started.precision,
                    started.logits[0],
                    request.follow,
                )
                if not running.is_finished:
                    self._rows.join(started.state)
                    with self._changed:
                        self._running.append((request, running))
            finally:
                started.release(started.state)
        except Exception as error:  # of this request alone
            _tell(request, error)

    def _step(self) -> None:
        """Run one token of every running answer."""
        if not self._running:
            return
        try:
            logits = self._rows.step([running.token for _, running in self._running])
        except Exception as error:  # the caches are in an unknown state
            self._end_all(error)
            return
        ended = []
        for row, (request, running) in enumerate(self._running):
            try:
                running.take(logits[row])
            except Exception as error:  # of this request alone
                _tell(request, error)
                ended.append(row)
                continue
            if running.is_finished:
                ended.append(row)
        self._leave(ended)

    def _end_cancelled(self) -> None:
        with self._changed:
            waiting = [(each, each.reason_to_end) for each in self._waiting]
            self._waiting = deque(each for each, reason in waiting if reason is None)
        for request, reason in waiting:
            if reason is not None:
                _tell(request, reason)
        ended = []
        for row, (request, _) in enumerate(self._running):
            reason = request.reason_to_end
            if reason is not None:
                _tell(request, reason)
                ended.append(row)
        self._leave(ended)

    def _leave(self, rows: list[int]) -> None:
        """Free rows; the last running row moves into each."""
        for row in sorted(rows, reverse=True):
            moved = self._rows.leave(row)
            with self._changed:
                self._running[row] = self._running[moved]
                self._running.pop()

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            ended = [*self._waiting, *(request for request, _ in self._running)]
            rows = range(len(self._running))
            self._waiting.clear()
        for request in ended:
            _tell(request, error)
        self._leave(list(rows))
        with self._changed:
            self._changed.notify_all()


def _tell(request: Request, error: BaseException) -> None:
    """Tell the follower of the end; one that fails itself must not stop the others."""
    try:
        request.follow(error)
    except Exception:
        request.cancel()
