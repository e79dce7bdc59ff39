"""Show progress of long work on stderr: a bar on a terminal, occasional lines in a log."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.progress import Progress as RichProgress
from rich.progress import TaskID

from comp.utils.console import progress, say


class Callback:
    """Base class of objects that follow long work; override the methods that you need.

    The methods are called in the process and thread of the work. One that raises stops the work; a pruning
    run that was stopped continues with ``resume``.
    """

    def on_progress(self, task: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of a task are finished: steps, or percent of the search."""

    def on_stage(self, stage: Mapping[str, Any]) -> None:
        """A stage of a search is finished and saved; ``stage`` is its line of ``stages.jsonl``."""


@dataclass
class Task:
    """A piece of work with a total."""

    name: str
    total: float
    bar: RichProgress
    number: TaskID
    quiet: bool
    callbacks: Sequence[Callback] = ()

    def at(self, done: float) -> None:
        self.bar.update(self.number, completed=done)
        for callback in self.callbacks:
            callback.on_progress(self.name, done, self.total)

    def note(self, text: str) -> None:
        """Describe the current step."""
        self.bar.update(self.number, description=text)
        if self.bar.disable and not self.quiet:
            say(text)


class Progress:
    """Makes tasks; ``quiet`` silences them (processes other than the first)."""

    def __init__(self, quiet: bool = False, callbacks: Sequence[Callback] = ()) -> None:
        self.quiet = quiet
        self.callbacks = callbacks

    def stage(self, line: Mapping[str, Any]) -> None:
        """Report a stage of a search that is saved."""
        for callback in self.callbacks:
            callback.on_stage(line)

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        with progress(disable=self.quiet) as bar:
            number = bar.add_task(name, total=total)
            yield Task(name, total, bar, number, self.quiet, self.callbacks)
