"""Show the progress of long work on stderr: a bar on a terminal, a line every 15 seconds elsewhere.

A command opens with what it will do, then shows its tasks one after another, and says after the first units
about how long all of them take::

    with working("verify: 200 examples in 9 variants", options.json, units=1800) as started:
        done = started("slim torch", 200)
        done()  # one more is done

``Progress`` does the same for the pipeline, whose tasks also call the user's callbacks.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from comp.utils.console import progress_bar, say, stderr_console

FIRST, EVERY = 5.0, 15.0  # seconds to the first line and between lines, where no bar can be shown
SOON, LONG = (
    2.0,
    10.0,
)  # seconds of work before the whole is estimated; shorter work is not announced

Clock = Callable[[], float]  # the time in seconds


class Callback:
    """Base class of objects that follow long work; override the methods that you need.

    The methods are called in the process and thread of the work. One that raises stops the work; a pruning
    run that was stopped continues with ``resume``.
    """

    def on_progress(self, task: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of a task are finished: steps, or percent of the search."""

    def on_stage(self, stage: Mapping[str, Any]) -> None:
        """A stage of a search is finished and saved; ``stage`` is its line of ``stages.jsonl``."""


class Done(Protocol):
    """Called when ``count`` more units of a task are done."""

    def __call__(self, count: float = 1) -> None: ...


@dataclass
class Pace:
    """How far a task is, and its speed.

    Attributes:
        total: units of the whole task; ``None`` if unknown.
        begun: units that an earlier run did: they took no time in this one.
        whole: the work that this task is a part of, if its length is known.
    """

    name: str
    total: float | None
    clock: Clock = time.monotonic
    begun: float = 0
    whole: "Pace | None" = None
    done: float = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.done, self.began = self.begun, self.clock()

    @property
    def is_over(self) -> bool:
        return self.total is not None and self.done >= self.total

    def seconds_left(self) -> float | None:
        """Return the time left at the mean speed until now; ``None`` before the first unit is done."""
        new = self.done - self.begun
        if self.total is None or new <= 0:
            return None
        return (self.clock() - self.began) * max(0.0, self.total - self.done) / new

    def line(self) -> str:
        """``pruning: 34 %, about 2 min left``; of a part also ``(of all about 6 min)``."""
        share = "" if not self.total else f"{100 * self.done / self.total:.0f} %, "
        if self.seconds_left() is None:
            return f"{self.name}: {share}{duration(self.clock() - self.began)} until now"
        return f"{self.name}: {share}{self.words_left()}"

    def words_left(self) -> str:
        """``about 2 min left (of all about 6 min)``; empty before the first unit is done."""
        left = self.seconds_left()
        if left is None:
            return ""
        all_left = None if self.whole is None else self.whole.seconds_left()
        of_all = "" if all_left is None else f" (of all about {duration(all_left)})"
        return f"about {duration(left)} left{of_all}"


class Display:
    """Shows tasks. This one shows nothing; the others show them as a bar or as lines."""

    def start(self, pace: Pace) -> None:
        """Show a new task."""

    def update(self, pace: Pace) -> None:
        """Show that a task has advanced or is described anew."""

    def end(self, pace: Pace) -> None:
        """Show a task no longer."""

    def note(self, text: str) -> None:
        """Report an event: lines show it at once, a bar has it as its description."""


class Bars(Display):
    """A bar with the time left for each task, on a terminal."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.shown: dict[int, Any] = {}

    def start(self, pace: Pace) -> None:
        self.shown[id(pace)] = self.bar.add_task(
            pace.name, total=pace.total, completed=pace.begun, left=""
        )

    def update(self, pace: Pace) -> None:
        self.bar.update(
            self.shown[id(pace)],
            description=pace.name,
            total=pace.total,
            completed=pace.done,
            left=pace.words_left(),
        )

    def end(self, pace: Pace) -> None:
        self.bar.remove_task(self.shown.pop(id(pace)))


class Lines(Display):
    """Prints a line about the latest unfinished task whenever ``tick`` is called; a thread calls it."""

    def __init__(self, print_line: Callable[[str], None] = say) -> None:
        self.print_line = print_line
        self.paces: list[Pace] = []

    def start(self, pace: Pace) -> None:
        self.paces.append(pace)

    def end(self, pace: Pace) -> None:
        self.paces = [each for each in self.paces if each is not pace]

    def note(self, text: str) -> None:
        self.print_line(text)

    def tick(self) -> None:
        """Print how far the task is, if one is unfinished."""
        unfinished = [each for each in self.paces if not each.is_over]
        if unfinished:
            self.print_line(unfinished[-1].line())


@contextmanager
def ticking(tick: Callable[[], None], over: threading.Event) -> Iterator[None]:
    """Call ``tick`` after 5 and then every 15 seconds, from a thread, until the end of the block.

    The end sets ``over``.
    """

    def ticks() -> None:
        wait = FIRST
        while not over.wait(wait):
            tick()
            wait = EVERY

    thread = threading.Thread(target=ticks, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def display(quiet: bool = False) -> Iterator[Display]:
    """Open the display that suits stderr: bars on a terminal, otherwise a line every 15 seconds."""
    if quiet:
        yield Display()
    elif stderr_console().is_terminal:
        with progress_bar() as bar:
            yield Bars(bar)
    else:
        lines = Lines()
        with ticking(lines.tick, threading.Event()):
            yield lines


@dataclass
class Whole:
    """All units of a command's tasks; says once how long they take, at the speed of the first ones.

    Attributes:
        units: number of units of all tasks; ``None``: of ``tasks`` as long as the first.
    """

    name: str
    units: float | None
    tasks: int = 1
    print_line: Callable[[str], None] = say
    clock: Clock = time.monotonic
    pace: Pace | None = field(init=False, default=None)
    said: bool = field(init=False, default=False)

    def begin(self, units: float) -> Pace:
        """Return the pace of all units, at the start of a task with this many."""
        if self.pace is None:
            self.pace = Pace(self.name, self.units or self.tasks * units, self.clock)
        return self.pace

    def advance(self, count: float) -> None:
        """``count`` more units are done."""
        pace = self.pace
        if pace is None:
            return
        pace.done += count
        left, spent = pace.seconds_left(), self.clock() - pace.began
        if self.said or left is None or spent < SOON:
            return
        self.said = True
        if spent + left >= LONG:
            self.print_line(
                f"{self.name}: about {duration(spent + left)} in all at the present speed"
            )


@dataclass
class Task:
    """A piece of work with a total."""

    pace: Pace
    display: Display
    callbacks: Sequence[Callback] = ()
    whole: Whole | None = None

    def __post_init__(self) -> None:
        self.name = self.pace.name  # of the callbacks, however the task is described
        self.display.start(self.pace)

    def at(self, done: float, total: float | None = None) -> None:
        """``done`` units are finished; ``total`` changes the number of all units."""
        if total is not None:
            self.pace.total = total
        more, self.pace.done = done - self.pace.done, done
        if self.whole is not None:
            self.whole.advance(more)
        self.display.update(self.pace)
        for callback in self.callbacks:
            callback.on_progress(self.name, done, self.pace.total or 0)

    def advance(self, count: float = 1) -> None:
        """``count`` more units are finished."""
        self.at(self.pace.done + count)

    def describe(self, text: str) -> None:
        """Describe the current step."""
        self.pace.name = text
        self.display.update(self.pace)

    def note(self, text: str) -> None:
        """Describe the current step, and report it at once."""
        self.describe(text)
        self.display.note(text)


class Started(Protocol):
    """Begins a task of some length; returns what its work calls as it advances."""

    def __call__(self, name: str, total: float) -> Done: ...


@dataclass(frozen=True)
class Work:
    """Makes the tasks of one command; a ``Started`` itself."""

    display: Display
    whole: Whole | None = None

    def __call__(self, name: str, total: float) -> Done:
        return self.task(name, total).advance

    def task(self, name: str, total: float | None = None, begun: float = 0) -> Task:
        pace = Pace(name, total, begun=begun)
        if self.whole is not None:
            whole = self.whole.begin((total or 1) - begun)
            pace.whole = None if self.whole.tasks == 1 else whole
        return Task(pace, self.display, whole=self.whole)


@contextmanager
def working(
    what: str, quiet: bool = False, units: float | None = None, tasks: int = 0
) -> Iterator[Work]:
    """Say what a command will do, show its tasks, and say after the first units how long all take.

    Args:
        what: the opening line: the command, a colon, the work and its size.
        quiet: show nothing.
        units: number of units of all tasks.
        tasks: number of tasks, if they are equally long; without either, only the time left in each
            task is shown.
    """
    whole: Whole | None = None
    if not quiet:
        say(what)
        whole = Whole(what.partition(":")[0], units, tasks) if units or tasks else None
    with display(quiet) as shown:
        yield Work(shown, whole)


class Progress:
    """Makes tasks; ``quiet`` silences them (processes other than the first)."""

    def __init__(self, quiet: bool = False, callbacks: Sequence[Callback] = ()) -> None:
        self.quiet = quiet
        self.callbacks = callbacks
        self._display: Display | None = None

    def say(self, text: str) -> None:
        """Print a line, unless silenced."""
        if not self.quiet:
            say(text)

    def stage(self, line: Mapping[str, Any]) -> None:
        """Report a stage of a search that is saved."""
        for callback in self.callbacks:
            callback.on_stage(line)

    @contextmanager
    def task(self, name: str, total: float, begun: float = 0) -> Iterator[Task]:
        """Show a task; an earlier run did ``begun`` of its units."""
        with self.shown() as shown:
            task = Task(Pace(name, total, begun=begun), shown, self.callbacks)
            try:
                yield task
            finally:
                shown.end(task.pace)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that a step of unknown length runs; callbacks do not hear of it."""
        with self.shown() as shown:
            task = Task(Pace(name, None), shown)
            try:
                yield
            finally:
                shown.end(task.pace)

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Keep one display open, which the tasks in the block share."""
        if self._display is not None:
            yield self._display
            return
        with display(self.quiet) as self._display:
            try:
                yield self._display
            finally:
                self._display = None


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2 h 41 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
