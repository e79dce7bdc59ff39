"""A request that waits or runs, and the errors that end it early."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TypeAlias

from comp.errors import CompExportError
from serve.engines.llava import Prepared
from serve.generation.options import GenerationOptions
from serve.generation.results import Event

Follower: TypeAlias = Callable[[Event | BaseException], None]
Work: TypeAlias = "Prepared | Callable[[GenerationOptions], Iterator[Event]]"


class QueueFullError(CompExportError):
    """The queue has no room: try again later."""


class CancelledError(CompExportError):
    """The request was cancelled, or its deadline has passed."""


@dataclass
class Request:
    """A request of one client.

    Attributes:
        work: a prompt with its pixels, for answers that run together; or what starts the engine's stream,
            for answers one after another.
        options: options of generation; the worker replaces them if the request adapts.
        follow: called with each event in the worker's thread, and with the exception that ends the
            request; one that it raises itself ends the request.
        deadline: time of ``time.monotonic`` after which the request ends.
        adapts: whether the worker chooses ``keep_factor`` by its load.
    """

    work: Work
    options: GenerationOptions
    follow: Follower
    deadline: float | None = None
    adapts: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """End the request before the next step; its follower gets ``CancelledError``."""
        self.cancelled.set()

    def adapt(self, keep_factor: float) -> None:
        """Take the factor that the load chose, if the request adapts."""
        if self.adapts:
            self.options = replace(self.options, keep_factor=keep_factor)

    @property
    def reason_to_end(self) -> CancelledError | None:
        """Why the request ends early; None if it goes on."""
        if self.cancelled.is_set():
            return CancelledError("the request was cancelled")
        if self.deadline is not None and monotonic() > self.deadline:
            return CancelledError("the deadline of the request has passed: give it more time")
        return None

    def end(self, error: BaseException) -> None:
        """Tell the follower why the request ends; one that fails must not stop the others."""
        try:
            self.follow(error)
        except Exception:
            self.cancel()


@dataclass(frozen=True)
class Load:
    """Numbers of requests: those that wait, and those whose answers run."""

    waiting: int
    running: int
