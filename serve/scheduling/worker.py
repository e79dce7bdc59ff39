"""A thread that serves the requests of one artifact from a bounded queue."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from serve.scheduling.adaptive import ADAPTIVE
from serve.scheduling.requests import CancelledError, Load, QueueFullError, Request

JOIN_SECONDS = 30.0  # a step takes less; the thread ends after it


class Worker(ABC):
    """A queue and its thread; all graphs of an artifact run there, so that the cores do one thing at a time.

    Args:
        queue: most requests that wait.
    """

    def __init__(self, queue: int) -> None:
        self.queue = queue
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._stopping = self._draining = self._working = False
        self._thread = threading.Thread(target=self._loop, name=type(self).__name__, daemon=True)

    @abstractmethod
    def check(self, request: Request) -> None:
        """Refuse a request that can never run.

        Raises:
            CompExportError: names why.
        """

    @property
    @abstractmethod
    def running(self) -> int:
        """Number of answers that run."""

    @abstractmethod
    def work(self) -> None:
        """Do a piece of work: about the time of a step."""

    @abstractmethod
    def end_running(self, error: BaseException) -> None:
        """End all answers that run."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; its follower is called from the worker's thread.

        Raises:
            QueueFullError: the queue is full, or the worker drains.
            CompExportError: the request can never run.
        """
        self.check(request)
        with self._changed:
            if self._draining or self._stopping:
                raise QueueFullError("the server is stopping: send the request to another one")
            if len(self._waiting) >= self.queue:
                raise QueueFullError(f"{self.queue} requests wait already: try again later")
            self._waiting.append(request)
            self._changed.notify()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        """Requests that wait and run now."""
        with self._changed:
            return Load(len(self._waiting), self.running)

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more requests, and wait until all have ended; return whether they have."""
        with self._changed:
            self._draining = True
            self._changed.notify()
            return self._changed.wait_for(lambda: self._is_idle, seconds)

    def stop(self) -> None:
        """End all requests after the present step, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def take(
        self, most: int = 1, like: Callable[[Request, Request], bool] | None = None
    ) -> list[Request]:
        """Take the next request from the queue, and up to ``most`` with those that are ``like`` it.

        Requests that adapt get one factor, by the load.
        """
        with self._changed:
            if not self._waiting:
                return []
            factor = ADAPTIVE.at(Load(len(self._waiting) - 1, self.running))
            taken: list[Request] = []
            left: deque[Request] = deque()
            for request in self._waiting:
                if len(taken) < most:
                    request.adapt(factor)
                if not taken or (
                    len(taken) < most and like is not None and like(taken[0], request)
                ):
                    taken.append(request)
                else:
                    left.append(request)
            self._waiting = left
        return taken

    @property
    def _is_idle(self) -> bool:
        return not (self._waiting or self._working or self.running)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._working = False
                if not self._waiting and not self.running:
                    self._changed.notify_all()  # who drains
                    self._changed.wait_for(lambda: self._waiting or self.running or self._stopping)
                if self._stopping:
                    break
                self._working = True
            self._end_waiting()
            self.work()
        error = CancelledError("the server was stopped")
        self.end_running(error)
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for request in waiting:
            request.end(error)

    def _end_waiting(self) -> None:
        """End requests that wait and were cancelled, or whose deadline has passed."""
        with self._changed:
            ended = [(each, each.reason_to_end) for each in self._waiting]
            self._waiting = deque(each for each, reason in ended if reason is None)
        for request, reason in ended:
            if reason is not None:
                request.end(reason)
