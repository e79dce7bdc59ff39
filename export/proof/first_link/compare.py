"""The first link: compare transformers with the engines on each request, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact.manifest import Precision
from export.proof.compare import TOLERANCES
from export.proof.first_link.reading import (
    STEPS,
    Answers,
    Outputs,
    Reading,
    Reference,
    Refused,
    Side,
    Step,
)
from export.proof.first_link.request import Request
from export.proof.outputs import BOUNDS, Bounds, Worst, differences, larger

PIXELS = 1e-5  # largest difference of pixel values
NUDGES = 8  # ways in which inputs are moved, to tell a tie from a difference
OF_OUTPUTS = ("logits", "embeddings", "scores", "answer", "stop")


@dataclass(frozen=True)
class Parted:
    """A request on which two sides differ.

    Attributes:
        request: its name.
        step: the first step where they differ.
        detail: both sides' values there, in short.
    """

    request: str
    step: Step
    detail: str


@dataclass(frozen=True)
class NotCompared:
    """A first link that cannot be compared on this machine."""

    name: str
    reason: str


@dataclass
class FirstLink:
    """transformers and another side compared over all requests.

    Attributes:
        artifact: name of the directory of the other side's artifact; empty if it has none.
        precision: precision of the other side's artifact.
        refused: by request, which side refuses it and why, if only one side does.
        both_refused: requests that both sides refuse.
        not_run: why models were not run; empty if they were.
        tied: requests whose answers differ after a choice (of a token, or of one to drop) that rounding
            decides.
    """

    name: str
    precision: Precision = "float32"
    artifact: str = ""
    requests: int = 0
    awkward: int = 0
    compared: int = 0
    run: int = 0
    pixel_difference: float = 0.0
    outputs: Worst = field(default_factory=Worst)
    parted: list[Parted] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    both_refused: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    not_run: str = ""
    refused_of_data: list[str] = field(default_factory=list)

    @property
    def bounds(self) -> Bounds:
        """Largest allowed differences of outputs."""
        return BOUNDS[self.precision]

    @property
    def ok(self) -> bool:
        """Whether nothing differs, most was compared, and no example that transformers answers is refused."""
        return (
            2 * self.compared >= self.requests > 0 and not self.parted and not self.refused_of_data
        )

    @property
    def why(self) -> str:
        """Describe where the link does not hold, in one line."""
        if self.parted:
            steps = [step for step in STEPS if any(each.step == step for each in self.parted)]
            first = next(each for each in self.parted if each.step == steps[0])
            return (
                f"{len(self.parted)} of {self.requests} requests part at {', '.join(steps)}; the first "
                f"at {steps[0]}: {first.request!r}: {first.detail}"
            )
        if self.refused_of_data:
            name = self.refused_of_data[0]
            return f"{name}, which transformers answers, is refused: {self.refused[name]}"
        refused = next(iter(self.refused.items()), None)
        first_of_them = "" if refused is None else f": {refused[0]!r} by {refused[1]}"
        return f"{self.compared} of {self.requests} requests are taken by both sides{first_of_them}"

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in ``verify.json``."""
        largest = self.outputs.absolute
        return {
            "name": self.name,
            "ok": self.ok,
            "precision": self.precision,
            "requests": self.requests,
            "awkward": self.awkward,
            "compared": self.compared,
            "answered": self.run,
            "max_pixel_difference": self.pixel_difference,
            "pixel_bound": PIXELS,
            "max_output_difference": largest if np.isfinite(largest) else None,
            "output_bound": self.outputs.absolute_bound(self.bounds),
            "outputs": self.outputs.to_dicts(self.bounds),
            "parted": {
                step: [
                    {"request": each.request, "detail": each.detail}
                    for each in self.parted
                    if each.step == step
                ]
                for step in STEPS
                if any(each.step == step for each in self.parted)
            },
            "refused": self.refused,
            "both_refused": self.both_refused,
            "tied": self.tied,
            "not_run": self.not_run,
        }


def answers_of(
    side: Side,
    requests: Sequence[Request],
    max_new_tokens: int,
    goes_on: Callable[[], bool] = lambda: True,
    done: Callable[[], None] = lambda: None,
) -> Answers:
    """Read every request on a side; its model runs on the first, and on others while ``goes_on``."""
    answers = Answers(side.name, not_run=side.not_run)
    for index, request in enumerate(requests):
        run = not side.not_run and (index == 0 or goes_on())
        answers.readings.append(side.read(request, max_new_tokens, run))
        done()
    return answers


def compare_readings(
    expected: Answers,
    reference: Reference,
    side: Side,
    requests: Sequence[Request],
    max_new_tokens: int,
    precision: Precision = "float32",
    done: Callable[[], None] = lambda: None,
    drops: bool = False,
) -> FirstLink:
    """Compare a side with transformers on the same requests.

    Args:
        expected: answers of the reference, in the order of the requests.
        reference, side: give the resized pictures if pixels differ.
        requests: pictures and words.
        max_new_tokens: length of an answer.
        precision: precision of the side's artifact, which gives the bounds of outputs.
        done: called after each request.
        drops: whether the model drops tokens. Rounding decides which of two close ones it drops: if
            outputs differ, the reference runs again with inputs moved by rounding, and a request that it
            then answers as the side does is tied.
    """
    link = FirstLink(f"{expected.name} = {side.name}", precision)
    link.not_run = expected.not_run or side.not_run
    for request, wanted in zip(requests, expected.readings, strict=True):
        run = not side.not_run and isinstance(wanted, Reading) and wanted.outputs is not None
        actual = side.read(request, max_new_tokens, run)
        nudges = NUDGES if drops and run else 0
        again = [partial(reference.nudged, request, max_new_tokens, n) for n in range(nudges)]
        _add(link, request, wanted, actual, expected.name, reference, side, again)
        done()
    return link


def _add(
    link: FirstLink,
    request: Request,
    wanted: Reading | Refused,
    actual: Reading | Refused,
    reference_name: str,
    reference: Side,
    side: Side,
    again: Sequence[Callable[[], Any]],
) -> None:
    link.requests += 1
    link.awkward += request.awkward
    if isinstance(wanted, Refused) or isinstance(actual, Refused):
        if isinstance(wanted, Refused) and isinstance(actual, Refused):
            link.both_refused.append(request.name)
            return
        which, refusal = (
            (reference_name, wanted) if isinstance(wanted, Refused) else (side.name, actual)
        )
        assert isinstance(refusal, Refused)
        link.refused[request.name] = f"{which}: {refusal.reason}"
        # A reference that only reads does not know what its model would refuse.
        answered = isinstance(wanted, Reading) and wanted.outputs is not None
        if answered and not request.awkward:
            link.refused_of_data.append(request.name)
        return
    link.compared += 1
    once = FirstLink(link.name, link.precision)
    parted = next(_differences(once, request, wanted, actual, reference, side), None)
    link.run += once.run
    link.pixel_difference = larger(link.pixel_difference, once.pixel_difference)
    if (
        parted is not None
        and parted[0] in OF_OUTPUTS
        and _moves_there(once, request, actual, again)
    ):
        link.tied.append(request.name)  # from here on the two see different tokens, and rightly so
        return
    link.outputs.add(once.outputs.by)
    link.tied += once.tied
    if parted is not None:
        link.parted.append(Parted(request.name, *parted))


def _moves_there(
    link: FirstLink, request: Request, actual: Reading, again: Sequence[Callable[[], Any]]
) -> bool:
    """Whether transformers answers as the other side did, when its inputs move by rounding."""
    for ask in again:
        moved = ask()
        if isinstance(moved, Reading) and moved.outputs is not None and actual.outputs is not None:
            scratch = FirstLink(link.name, link.precision)
            if next(_of_outputs(scratch, request, moved.outputs, actual.outputs), None) is None:
                return True
    return False


def _differences(
    link: FirstLink,
    request: Request,
    wanted: Reading,
    actual: Reading,
    reference: Side,
    side: Side,
) -> Iterator[tuple[Step, str]]:
    """The steps where two readings differ, the first one first."""
    if not np.array_equal(wanted.input_ids, actual.input_ids):
        # Templates matter by what the tokenizer makes of them: a leading BOS may be its work.
        mine_said, theirs_said = wanted.prompt, actual.prompt
        if mine_said is None or theirs_said is None:
            pass
        elif not (mine_said.endswith(theirs_said) or theirs_said.endswith(mine_said)):
            yield "template", f"{_short(mine_said)} against {_short(theirs_said)}"
        yield "tokens", _tokens(wanted.input_ids, actual.input_ids)
    mine, theirs = wanted.pixel_values, actual.pixel_values
    if (mine is None) != (theirs is None):
        yield "resize", f"{_shape(mine)} against {_shape(theirs)}"
    elif mine is not None and theirs is not None:
        if mine.shape != theirs.shape:
            yield "resize", f"{_shape(mine)} against {_shape(theirs)}"
        else:
            apart = _largest(mine, theirs)
            link.pixel_difference = max(link.pixel_difference, apart)
            if not apart <= PIXELS:
                yield _where(request, reference, side), f"pixel values differ by {apart:.2g}"
    if wanted.outputs is not None and actual.outputs is not None:
        link.run += 1
        yield from _of_outputs(link, request, wanted.outputs, actual.outputs)


def _of_outputs(
    link: FirstLink, request: Request, wanted: Outputs, actual: Outputs
) -> Iterator[tuple[Step, str]]:
    tolerance = TOLERANCES[link.precision]
    for step, numbers in wanted.values.items():
        theirs = actual.values[step]
        if numbers.values.shape != theirs.values.shape:
            yield step, f"{_shape(numbers.values)} against {_shape(theirs.values)}"
            return
        worst = Worst(differences(numbers, theirs))
        link.outputs.add(worst.by)
        beyond = worst.beyond(link.bounds)
        if beyond:
            apart = (
                f"{each[1]} {worst.by[each]:.2g} (bound {link.bounds.of(each):.2g})"
                for each in beyond
            )
            yield step, f"{numbers.kind}: they differ by {', '.join(apart)}"
    if wanted.tokens is None or actual.tokens is None:
        return
    pairs = enumerate(zip(wanted.tokens, actual.tokens, strict=False))
    place = next((i for i, (mine, theirs) in pairs if mine != theirs), None)
    if place is None and (len(wanted.tokens), wanted.ended) != (len(actual.tokens), actual.ended):
        place = min(len(wanted.tokens), len(actual.tokens))
    if place is None:
        if wanted.text.strip() != actual.text.strip():
            yield "text", f"{_short(wanted.text)} against {_short(actual.text)}"
        return
    if place < len(wanted.margins) and wanted.margins[place] <= tolerance.near:
        link.tied.append(request.name)
        return
    step = "stop" if place >= min(len(wanted.tokens), len(actual.tokens)) else "answer"
    yield step, f"{_answer(wanted)} against {_answer(actual)}"


def _where(request: Request, reference: Side, side: Side) -> Step:
    """Whether pictures differ before they are rescaled and normalised, or only after it."""
    pairs = zip(reference.resized(request.images), side.resized(request.images), strict=True)
    same = all(a.shape == b.shape and np.array_equal(a, b) for a, b in pairs)
    return "normalise" if same else "resize"


def _largest(mine: NDArray[Any], theirs: NDArray[Any]) -> float:
    difference = np.abs(mine.astype(np.float64) - theirs)
    return float(difference.max()) if difference.size else 0.0


def _tokens(mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> str:
    size = min(mine.size, theirs.size)
    apart = np.flatnonzero(mine[:size] != theirs[:size])
    place = int(apart[0]) if apart.size else size
    window = slice(max(0, place - 1), place + 4)
    return (
        f"{mine.size} and {theirs.size} tokens, different from place {place}: "
        f"{mine[window].tolist()} against {theirs[window].tolist()}"
    )


def _answer(outputs: Outputs) -> str:
    end = "ends" if outputs.ended else "goes on"
    return f"{list(outputs.tokens or ())} ({end})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]}…{text[-39:]}")


def _shape(values: NDArray[Any] | None) -> str:
    return "no picture" if values is None else f"shape {tuple(values.shape)}"
