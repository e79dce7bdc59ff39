"""Show progress of long work on stderr: a bar on a terminal, occasional lines in a log."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import Progress as RichProgress
from rich.progress import TaskID

from comp.utils.console import progress, say


@dataclass
class Task:
    """A piece of work with a total."""

    name: str
    total: float
    bar: RichProgress
    number: TaskID
    quiet: bool

    def at(self, done: float) -> None:
        self.bar.update(self.number, completed=done)

    def note(self, text: str) -> None:
        """Describe the current step."""
        self.bar.update(self.number, description=text)
        if self.bar.disable and not self.quiet:
            say(text)


class Progress:
    """Makes tasks; ``quiet`` silences them (processes other than the first)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        with progress(disable=self.quiet) as bar:
            yield Task(name, total, bar, bar.add_task(name, total=total), self.quiet)
