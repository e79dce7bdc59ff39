"""Progress of long work: bars on a terminal, lines elsewhere; all with a fake clock."""

import io
import threading

import pytest
from rich.console import Console

from comp.utils import console, progress
from comp.utils.progress import (
    Bars,
    Callback,
    Lines,
    Pace,
    Progress,
    Task,
    Whole,
    duration,
    working,
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_line_says_the_share_and_the_time_left(clock):
    pace = Pace("answering", 200, clock)
    clock.now += 5
    assert pace.line() == "answering: 0 %, 5 s until now"
    clock.now += 15
    pace.done = 50
    assert pace.line() == "answering: 25 %, about 60 s left"


def test_what_an_earlier_run_did_does_not_speed_the_estimate_up(clock):
    pace = Pace("recovering", 100, clock, begun=80)
    assert pace.seconds_left() is None
    clock.now += 10
    pace.done = 81
    assert pace.seconds_left() == pytest.approx(190)


def test_without_a_total_a_line_says_how_long_it_runs(clock):
    pace = Pace("cutting", None, clock)
    clock.now += 150
    assert pace.line() == "cutting: 2 min until now"


def test_lines_are_of_the_latest_unfinished_task(clock):
    printed = []
    lines = Lines(printed.append)
    lines.tick()
    outer = Task(Pace("pruning", 100, clock), lines)
    inner = Task(Pace("measuring", 4, clock), lines)
    clock.now += 15
    outer.at(10)
    inner.advance()
    lines.tick()
    inner.at(4)
    lines.tick()
    lines.end(inner.pace)
    outer.note("stage 2")
    lines.tick()
    outer.at(100)
    lines.tick()
    assert printed == [
        "measuring: 25 %, about 45 s left",
        "pruning: 10 %, about 2 min left",
        "stage 2",
        "stage 2: 10 %, about 2 min left",
    ]


def test_the_whole_is_estimated_once_from_the_first_units(clock):
    printed = []
    whole = Whole("verify", 300, print_line=printed.append, clock=clock)
    first = Task(Pace("transformers", 50, clock, whole=whole.begin(50)), Lines(), whole=whole)
    clock.now += 1
    first.advance()  # too soon to tell
    clock.now += 9
    first.advance(9)
    first.at(50)
    assert printed == ["verify: about 5 min in all at the present speed"]
    second = Task(Pace("slim torch", 200, clock, whole=whole.begin(200)), Lines(), whole=whole)
    clock.now += 20
    second.at(50)  # 100 of 300 in 30 s
    assert second.pace.line() == "slim torch: 25 %, about 60 s left (of all about 60 s)"
    assert len(printed) == 1


def test_short_work_and_what_an_earlier_run_did_are_not_announced(clock):
    printed = []
    for seconds in (4.0, 40.0):
        whole = Whole("profile", None, tasks=2, print_line=printed.append, clock=clock)
        pace = Pace("blocks", 100, clock, begun=60, whole=whole.begin(100 - 60))
        task = Task(pace, Lines(), whole=whole)
        clock.now += seconds
        task.at(100)
    assert printed == ["profile: about 80 s in all at the present speed"]


class Waits:
    """An event that is set after some waits, which take no time."""

    def __init__(self, count):
        self.count, self.waited, self.over = count, [], threading.Event()

    def wait(self, seconds):
        if len(self.waited) < self.count:
            self.waited.append(seconds)
            return False
        return self.over.wait()

    def set(self):
        self.over.set()


def test_a_thread_ticks_soon_and_then_every_quarter_of_a_minute():
    ticked, third = [], threading.Event()

    def tick():
        ticked.append(len(ticked))
        if len(ticked) == 3:
            third.set()

    waits = Waits(3)
    with progress.ticking(tick, waits):
        assert third.wait(60)
    assert waits.waited == [5.0, 15.0, 15.0]
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_work_opens_with_a_line_and_prints_no_bar_into_a_log(capsys):
    with working("verify: 200 examples") as started:
        done = started("slim torch", 2)
        done()
        done(1)
    assert capsys.readouterr().err == "verify: 200 examples\n"


def test_quiet_work_prints_nothing(capsys):
    with working("verify: 200 examples", quiet=True) as started:
        started("slim torch", 2)()
    with Progress(quiet=True).task("pruning", 3) as task:
        task.note("stage 1")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_time_left(monkeypatch, clock):
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(console, "stderr_console", lambda: terminal)
    with console.progress_bar() as bar:
        shown = Bars(bar)
        task = Task(Pace("recovering", 396, clock), shown)
        clock.now += 60
        task.at(198)
        bar.refresh()
        shown.end(task.pace)
        assert bar.tasks == []
    assert "recovering" in written.getvalue()
    assert "198/396" in written.getvalue()
    assert "about 60 s left" in written.getvalue()


def test_tasks_of_one_run_share_a_display_and_steps_are_not_called_back():
    class Heard(Callback):
        def __init__(self):
            self.heard = []

        def on_progress(self, task, done, total):
            self.heard.append((task, done, total))

    heard = Heard()
    shows = Progress(quiet=True, callbacks=(heard,))
    with shows.shown() as first:
        with shows.step("measuring"):
            pass
        with shows.task("recovering", 2) as task:
            assert task.display is first
            task.note("step 1: loss 0.3")
            task.at(1)
    assert heard.heard == [("recovering", 1, 2)]


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45 s"), (170, "3 min"), (9660, "2 h 41 min"), (3500, "58 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
