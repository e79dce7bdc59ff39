"""Run one request on both models, one after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter, sleep
from typing import Generic, Literal, TypeVar

from comp.data.images import ImageSource
from demo.pair import Pair
from serve.artifacts import Which
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, Generation, TokenText

# A browser on this machine draws the update; the next clock starts after that.
DRAWING_SECONDS = 0.25
BETWEEN_DRAWINGS = 0.06  # seconds: drawing every token would slow the measured model

R = TypeVar("R")


@dataclass(frozen=True)
class Side(Generic[R]):
    """The state of one model's half of the page: the text so far, if it comes word by word, and the result
    when it is there.
    """

    which: Which
    state: Literal["ready", "waiting", "working", "done"] = "ready"
    text: str = ""
    result: R | None = None


@dataclass(frozen=True)
class Comparison(Generic[R]):
    """The state of both halves."""

    dense: Side[R] = field(default_factory=lambda: Side("dense"))
    compressed: Side[R] = field(default_factory=lambda: Side("compressed"))


Work = Callable[[Which], Iterator[Side[R]]]  # runs a model and yields the states of its half


def in_turn(work: Work[R]) -> Iterator[Comparison[R]]:
    """Run the original, then the compressed model; yield whenever there is something to show.

    The second starts when the first is done, so that neither slows the other.
    """
    now: Comparison[R] = Comparison(Side("dense", "working"), Side("compressed", "waiting"))
    yield now
    sleep(DRAWING_SECONDS)
    for side in work("dense"):
        now = replace(now, dense=side)
        yield now
    now = replace(now, compressed=Side("compressed", "working"))
    yield now
    sleep(DRAWING_SECONDS)
    for side in work("compressed"):
        now = replace(now, compressed=side)
        yield now


def at_once(work: Callable[[Which], R]) -> Work[R]:
    """Work whose result comes in one piece."""

    def half(which: Which) -> Iterator[Side[R]]:
        yield Side(which, "done", result=work(which))

    return half


def answering(
    pair: Pair[Engine] | Pair[BlipGenerator],
    image: ImageSource,
    prompt: str,
    options: GenerationOptions,
) -> Work[Generation]:
    """Generate an answer or a caption, token by token; errors as for ``Engine.stream``."""

    def half(which: Which) -> Iterator[Side[Generation]]:
        plain = replace(options, keep_factor=1.0)  # the original drops nothing
        chosen = plain if which == "dense" else options
        side: Side[Generation] = Side(which, "working")
        drawn = perf_counter()
        for event in pair.engine(which).stream([image], prompt, chosen):
            if isinstance(event, TokenText) and event.text:
                side = replace(side, text=side.text + event.text)
                if perf_counter() - drawn >= BETWEEN_DRAWINGS:
                    yield side
                    drawn = perf_counter()
            elif isinstance(event, Finished):
                yield Side(which, "done", event.generation.text, event.generation)

    return half
