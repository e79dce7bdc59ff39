"""One link of the proof: two forms of a model asked the same questions."""

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
    """What rounding may do to choices; of outputs see ``export.proof.outputs.Bounds``.

    Scores so close count as tied: which of them is chosen is a matter of rounding, so such questions are
    counted and listed, and what follows from the choice is not compared.

    Attributes:
        close: two candidates of a decision.
        tie: two tokens.
        near: two logits of a text.
    """

    close: float
    tie: float
    near: float

    def __add__(self, other: "Tolerance") -> "Tolerance":
        """Of what is rounded in both ways."""
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
    """A greedy text under way: its tokens, and by how much the logit of each led the next best."""

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
    """What one form said to one question.

    Attributes:
        outputs: every number that is compared, by kind.
        kept: original indices kept at each drop place, ascending, ``[k]``.
        scores: of every original token at each place, ``[N]`` (NaN: gone); may be empty.
        decision: what a user gets to see: greedy tokens, or the ranks or classes chosen.
        margin: by how much it was made, where that is one number; less than rounding is a tie.
        step_margins: of a text, by how much each of its tokens was chosen (``Greedy.margins``).
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
    """A form of the model: torch masked, torch slim, or an artifact."""

    def ask(self, question: Any, max_new_tokens: int) -> Answered:
        """One question of the family's kind; answers have so many tokens at most."""
        ...


@dataclass
class Link:
    """Two forms compared over all questions; ``ok`` when nothing but exact ties differs.

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
        """How far outputs may be off."""
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

    def add(self, expected: Answered, found: Answered) -> None:
        """Compare the answers of both forms to the next question."""
        number = self.questions
        self.questions += 1
        kept = zip(self.places, expected.kept, found.kept, strict=True)
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
        for differences in compared(expected.outputs, found.outputs):
            self.outputs.add(differences)
        if expected.decision == found.decision:
            return
        if expected.margin <= self.tolerance.close or self._parted_at_a_tie(expected, found):
            self.tied.append(number)
        else:
            self.answers_different.append(number)

    def _parted_at_a_tie(self, expected: Answered, found: Answered) -> bool:
        """Whether two texts part at a token that was chosen by less than rounding."""
        pairs = zip(expected.decision, found.decision, expected.step_margins, strict=False)
        parted = (margin for mine, theirs, margin in pairs if mine != theirs)
        return next(parted, math.inf) <= self.tolerance.near

    def to_dict(self) -> dict[str, Any]:
        """For ``verify.json``."""
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
    """Every question in turn; ``asked`` is called after each."""
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
    found: list[Answered],
    bfloat16: bool = False,
) -> Link:
    """The link between two forms that were asked the same questions; arguments as of ``Link``."""
    link = Link(name, precision, places, bfloat16)
    for mine, theirs in zip(expected, found, strict=True):
        link.add(mine, theirs)
    return link
