"""Run one request on both models, one after the other; then again several times to measure it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter, sleep
from typing import Generic, Literal, TypeVar

from comp.data.images import ImageSource
from demo.pair import Pair
from demo.remote.generator import RemoteGenerator
from serve.artifacts import Which
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, Generation, TokenText

# A browser on this machine draws the update; the next clock starts after that.
DRAWING_SECONDS = 0.25
BETWEEN_DRAWINGS = 0.06  # seconds: drawing every token would slow the measured model
TIMED_RUNS = 7  # of each model, for the clocks
TIMED_SECONDS = 4.0  # no further run is begun that would end later

R = TypeVar("R")


@dataclass(frozen=True)
class Side(Generic[R]):
    """The state of one model's half of the page.

    Attributes:
        which: the model.
        state: what it does.
        text: the text so far, if it comes word by word.
        result: the result that is shown, of the first run.
        timed: results of later runs of the same request, from which the clocks are read.
    """

    which: Which
    state: Literal["ready", "waiting", "working", "done"] = "ready"
    text: str = ""
    result: R | None = None
    timed: tuple[R, ...] = ()

    @property
    def measured(self) -> tuple[R, ...]:
        """The results to read the clocks from: the timed ones, or the first while there are none."""
        return self.timed or (() if self.result is None else (self.result,))


@dataclass(frozen=True)
class Comparison(Generic[R]):
    """The state of both halves; ``measured`` when the last timed run is done."""

    dense: Side[R] = field(default_factory=lambda: Side("dense"))
    compressed: Side[R] = field(default_factory=lambda: Side("compressed"))
    measured: bool = False


@dataclass(frozen=True)
class Work(Generic[R]):
    """One request, for either model.

    Attributes:
        show: runs a model and yields the states of its half.
        again: runs a model once more, to be timed; both models do equally much. None: what was shown is
            what is timed.
    """

    show: Callable[[Which], Iterator[Side[R]]]
    again: Callable[[Which, Comparison[R]], R] | None


def in_turn(work: Work[R]) -> Iterator[Comparison[R]]:
    """Run the original, then the compressed model; yield whenever there is something to show.

    The second starts when the first is done, so that neither slows the other. Then the same request runs
    several times on both in turn, so that a slow spell of the machine affects both.
    """
    now: Comparison[R] = Comparison(Side("dense", "working"), Side("compressed", "waiting"))
    yield now
    sleep(DRAWING_SECONDS)
    for side in work.show("dense"):
        now = replace(now, dense=side)
        yield now
    now = replace(now, compressed=Side("compressed", "working"))
    yield now
    sleep(DRAWING_SECONDS)
    for side in work.show("compressed"):
        now = replace(now, compressed=side)
        yield now
    yield from _timed(work, now)


def _timed(work: Work[R], now: Comparison[R]) -> Iterator[Comparison[R]]:
    """Add timed runs, at least one of each model, while they fit into ``TIMED_SECONDS``."""
    if work.again is None:
        first = {"dense": now.dense, "compressed": now.compressed}
        done = {which: replace(side, timed=side.measured) for which, side in first.items()}
        yield Comparison(done["dense"], done["compressed"], measured=True)
        return
    start, turn, longest = perf_counter(), 0, 0.0
    while not turn or (turn < TIMED_RUNS and perf_counter() - start + longest <= TIMED_SECONDS):
        began = perf_counter()
        sides = {"dense": now.dense, "compressed": now.compressed}
        order: tuple[Which, Which] = (
            ("compressed", "dense") if turn % 2 else ("dense", "compressed")
        )
        for which in order:
            side = sides[which]
            sides[which] = replace(side, timed=(*side.timed, work.again(which, now)))
        now = replace(now, dense=sides["dense"], compressed=sides["compressed"])
        turn += 1
        longest = max(longest, perf_counter() - began)
    yield replace(now, measured=True)


def at_once(work: Callable[[Which], R]) -> Work[R]:
    """Work whose result comes in one piece."""

    def half(which: Which) -> Iterator[Side[R]]:
        yield Side(which, "done", result=work(which))

    return Work(half, lambda which, _: work(which))


def answering(
    pair: Pair[Engine] | Pair[BlipGenerator] | Pair[RemoteGenerator],
    image: ImageSource,
    prompt: str,
    options: GenerationOptions,
) -> Work[Generation]:
    """Generate an answer or a caption, token by token; errors as for ``Engine.stream``.

    In timed runs both models generate as many tokens as the longer of the two answers has, with its end
    token: their totals compare. A server is asked once: it has other clients, and knows a prompt that
    comes again.
    """

    def chosen(which: Which) -> GenerationOptions:
        return replace(options, keep_factor=1.0) if which == "dense" else options

    def half(which: Which) -> Iterator[Side[Generation]]:
        side: Side[Generation] = Side(which, "working")
        drawn = perf_counter()
        for event in pair.engine(which).stream([image], prompt, chosen(which)):
            if isinstance(event, TokenText) and event.text:
                side = replace(side, text=side.text + event.text)
                if perf_counter() - drawn >= BETWEEN_DRAWINGS:
                    yield side
                    drawn = perf_counter()
            elif isinstance(event, Finished):
                yield Side(which, "done", event.generation.text, event.generation)

    def again(which: Which, now: Comparison[Generation]) -> Generation:
        results = (now.dense.result, now.compressed.result)
        longest = max(len(result.token_ids) for result in results if result is not None)
        tokens = min(longest + 1, options.max_new_tokens)
        equal = replace(chosen(which), max_new_tokens=tokens, ignore_eos=True)
        return pair.engine(which).generate([image], prompt, equal)

    return Work(half, None if pair.server else again)
