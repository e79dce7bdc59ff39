"""One link of the proof: two variants of a model answer the same questions."""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from comp.plan import Place
from export.artifact.manifest import Precision
from export.proof.outputs import BOUNDS, Bounds, Output, Worst, compared


@dataclass(frozen=True)
class Tolerance:
    """Margins below which a choice counts as tied; for outputs see ``export.proof.outputs.Bounds``.

    Rounding decides between tied candidates. Such questions are counted and listed, and everything that
    depends on the choice is not compared.

    Attributes:
        close: margin between two candidates of a decision.
        tie: margin between the scores of two tokens.
        near: margin between two logits of a text.
    """

    close: float
    tie: float
    near: float

    def __add__(self, other: "Tolerance") -> "Tolerance":
        """Return the sum: margins of two roundings."""
        return Tolerance(
            self.close + other.close,
            self.tie + other.tie,
            self.near + other.near,
        )


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(close=1e-5, tie=1e-6, near=2e-4),
    "float16": Tolerance(close=5e-3, tie=2e-3, near=0.05),
    "bfloat16": Tolerance(close=3e-2, tie=1.6e-2, near=0.2),
    "int8": Tolerance(close=3e-2, tie=2e-2, near=0.2),
    "int4": Tolerance(close=3e-2, tie=2e-2, near=0.2),
}


@dataclass
class Greedy:
    """A greedy text: its tokens, and the margin of each token's logit over the next best."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(self, logits: np.ndarray) -> int:
        """The likeliest token of ``logits [V]``."""
        second, first = np.partition(logits.astype(np.float64), -2)[-2:]
        self.tokens.append(int(logits.argmax()))
        self.margins.append(float(first - second))
        return self.tokens[-1]


def greedy(
    logits: np.ndarray,
    state: Any,
    step: Callable[[int, Any], tuple[np.ndarray, Any]],
    ends: Container[int],
    most: int,
) -> Greedy:
    """The greedy text up to a token that ends it, which is included, or of ``most`` tokens.

    Args:
        logits: of the first token, ``[V]``.
        state: before the first step.
        step: takes a token and a state; returns the logits of the next token, and the next state.
        ends: tokens that end a text.
        most: at least 1.
    """
    text = Greedy()
    last = text.add(logits)
    while len(text.tokens) < most and last not in ends:
        logits, state = step(last, state)
        last = text.add(logits)
    return text


@dataclass(frozen=True)
class Answered:
    """The answer of one variant to one question.

    Attributes:
        outputs: every number that is compared, by kind.
        kept: original indices kept at each drop place, ascending, ``[k]``.
        scores: scores of every original token at each place, ``[N]`` (NaN: dropped before); may be
            empty.
        decision: what a user sees: greedy tokens, or the chosen ranks or classes.
        margin: margin of the decision, if it is one number; below rounding it is a tie.
        step_margins: margins of the tokens of a text (``Greedy.margins``).
        ranking_margins: by how much each place's scores are those, where they hang on a choice of
            pivots; may be empty.
        of_image: which tokens are an image's, ``[N]``, where these are ranked apart from the text's.
    """

    outputs: tuple[Output, ...]
    kept: list[np.ndarray]
    scores: list[np.ndarray]
    decision: list[int]
    margin: float = math.inf
    step_margins: list[float] = field(default_factory=list)
    ranking_margins: list[float] = field(default_factory=list)
    of_image: np.ndarray | None = None


class Runner(Protocol):
    """A variant of the model: torch masked, torch slim, or an artifact."""

    def ask(self, question: Any, max_new_tokens: int) -> Answered:
        """Answer one question of the family's kind, with at most this number of tokens."""
        ...


@dataclass
class Link:
    """Two variants compared over all questions; ``ok`` if only ties differ.

    Attributes:
        precision: of the artifact; ``bfloat16``: besides, what it has in other numbers is computed so.
    """

    name: str
    precision: Precision
    places: tuple[Place, ...]
    bfloat16: bool = False
    questions: int = 0
    outputs: Worst = field(default_factory=Worst)
    answers_different: list[int] = field(default_factory=list)
    kept_different: dict[Place, list[int]] = field(default_factory=dict)
    tied: list[int] = field(default_factory=list)

    @property
    def tolerance(self) -> Tolerance:
        own = TOLERANCES[self.precision]
        return own + TOLERANCES["bfloat16"] if self.bfloat16 else own

    @property
    def bounds(self) -> Bounds:
        """Largest allowed differences of outputs."""
        own = BOUNDS[self.precision]
        return own + BOUNDS["bfloat16"] if self.bfloat16 else own

    @property
    def ok(self) -> bool:
        return (
            self.questions > len(self.tied)
            and not self.outputs.beyond(self.bounds)
            and not self.answers_different
            and not any(self.kept_different.values())
        )

    def add(self, expected: Answered, actual: Answered) -> None:
        """Compare the answers of both variants to the next question."""
        number = self.questions
        self.questions += 1
        kept = zip(self.places, expected.kept, actual.kept, strict=True)
        for which, (place, mine, theirs) in enumerate(kept):
            if np.array_equal(mine, theirs):
                continue
            score = expected.scores[which] if expected.scores else None
            tie = self.tolerance.tie
            if expected.ranking_margins and expected.ranking_margins[which] <= tie:
                score = np.zeros(max(*mine, *theirs) + 1)  # any tokens may have been the nearest
            of_image = expected.of_image if place[0] == "language" else None
            if score is not None and is_tie(mine, theirs, score, tie, of_image):
                self.tied.append(number)
                return  # from here on the two see different tokens, and rightly so
            self.kept_different.setdefault(place, []).append(number)
        for differences in compared(expected.outputs, actual.outputs):
            self.outputs.add(differences)
        if expected.decision == actual.decision:
            return
        if expected.margin <= self.tolerance.close or self._parted_at_a_tie(expected, actual):
            self.tied.append(number)
        else:
            self.answers_different.append(number)

    def _parted_at_a_tie(self, expected: Answered, actual: Answered) -> bool:
        """Whether two texts first differ at a token that was chosen by less than rounding."""
        pairs = zip(expected.decision, actual.decision, expected.step_margins, strict=False)
        parted = (margin for mine, theirs, margin in pairs if mine != theirs)
        return next(parted, math.inf) <= self.tolerance.near

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in ``verify.json``."""
        asked = self.questions - len(self.tied)
        largest = self.outputs.absolute
        return {
            "name": self.name,
            "ok": self.ok,
            "precision": self.precision,
            "questions": self.questions,
            "max_logit_difference": largest if math.isfinite(largest) else None,
            "bound": self.outputs.absolute_bound(self.bounds),
            "outputs": self.outputs.to_dicts(self.bounds),
            "kept": [
                {
                    "part": place[0],
                    "after_layer": place[1],
                    "identical": asked - len(self.kept_different.get(place, [])),
                    "different": self.kept_different.get(place, []),
                }
                for place in self.places
            ],
            "answers": {
                "identical": asked - len(self.answers_different),
                "different": self.answers_different,
            },
            "tied": self.tied,
            "tie": self.tolerance.tie,
        }


def is_tie(
    first: np.ndarray,
    second: np.ndarray,
    scores: np.ndarray,
    within: float,
    of_image: np.ndarray | None = None,
) -> bool:
    """Whether two kept sets of one size differ only in tokens whose scores are the same.

    Args:
        first, second: kept indices.
        scores: by original index ``[N]``.
        within: largest spread of the scores of the tokens that differ, of one kind.
        of_image: the tokens of one kind, by original index ``[N]``; without it there is one.
    """
    apart = np.zeros(len(scores), bool) if of_image is None else of_image
    for kind in (False, True):
        mine, theirs = (kept[apart[kept] == kind] for kept in (first, second))
        swapped = np.setxor1d(mine, theirs)
        if len(mine) != len(theirs) or (swapped.size and not np.ptp(scores[swapped]) <= within):
            return False
    return True


def ask_all(
    runner: Runner,
    questions: Iterable[Any],
    max_new_tokens: int,
    asked: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Answer every question in turn; ``asked`` is called after each."""
    answers = []
    for question in questions:
        answers.append(runner.ask(question, max_new_tokens))
        asked()
    return answers


def compare(
    name: str,
    precision: Precision,
    places: tuple[Place, ...],
    expected: list[Answered],
    actual: list[Answered],
    bfloat16: bool = False,
) -> Link:
    """Compare two variants that answered the same questions; arguments as of ``Link``."""
    link = Link(name, precision, places, bfloat16)
    for mine, theirs in zip(expected, actual, strict=True):
        link.add(mine, theirs)
    return link
