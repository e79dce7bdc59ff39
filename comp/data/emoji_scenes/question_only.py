"""Measure the accuracy on EmojiScenes without images: the best guess from the question alone.

Questions are split into a wording and the things, categories and places that it names. Answers are
tabulated for keys of decreasing detail (wording and all names, wording and one name, wording, kind). For
each kind of question the level of detail that is best on held-out training questions is used; an unknown
key falls back to the next coarser one. Run ``python -m comp.data.emoji_scenes.question_only``.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.questions import KINDS, Question
from comp.data.emoji_scenes.scenes import PLACES
from comp.data.emoji_scenes.sprites import CATEGORY_PLURALS, sprites
from comp.metrics.exact_match import exact_match, wilson_interval

FIT, TEST = 36_000, 6_000
HELD_OUT = 0.25
LEVELS = 4

Tables = list[dict[Hashable, str]]


@dataclass(frozen=True)
class Result:
    """Share of test questions guessed right, overall and by kind."""

    accuracy: float
    ci95: tuple[float, float]
    n: int
    by_kind: dict[str, float]


class QuestionOnly:
    """Guesses from the question alone; built from questions with their answers."""

    def __init__(self, questions: Sequence[Question]) -> None:
        cut = round(len(questions) * (1 - HELD_OUT))
        self._level = _best_levels(_tabulate(questions[:cut]), questions[cut:])
        self._tables = _tabulate(questions)

    def guess(self, question: str, kind: str) -> str:
        """Return the likeliest answer; empty for an unknown kind."""
        return _guess(self._tables, question, kind, self._level.get(kind, 0))


def measure(fit: int = FIT, test: int = TEST) -> Result:
    """Fit on ``fit`` training questions, and measure on ``test`` test questions."""
    guesser = QuestionOnly(_questions("train", fit))
    right: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    for question in _questions("test", test):
        questions[question.kind] += 1
        guess = guesser.guess(question.text, question.kind)
        right[question.kind] += exact_match(question.answer, guess)
    hits = right.total()
    return Result(
        accuracy=hits / test,
        ci95=wilson_interval(hits, test),
        n=test,
        by_kind={kind: right[kind] / questions[kind] for kind in KINDS if questions[kind]},
    )


def _questions(split: str, count: int) -> list[Question]:
    scenes = EmojiScenes(split)
    return [scenes.scene(index)[1] for index in range(count)]


@cache
def _names() -> re.Pattern[str]:
    names = {*sprites(), *CATEGORY_PLURALS, *CATEGORY_PLURALS.values()}
    names |= {place for row in PLACES for place in row}
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"\b({alternatives})\b")


def _parsed(question: str) -> tuple[str, tuple[str, ...]]:
    """Return the wording without names, and the names in order."""
    return _names().sub("_", question), tuple(_names().findall(question))


def _keys(question: str, kind: str) -> tuple[Hashable, ...]:
    """Return the ``LEVELS`` keys, from the most to the least detailed."""
    wording, names = _parsed(question)
    return (kind, wording, names), (kind, wording, names[:1]), (kind, wording), (kind,)


def _relative(answer: str, names: Sequence[str]) -> str:
    """Replace an answer that repeats a name of the question by the name's index there."""
    return f"_{names.index(answer)}" if answer in names else answer


def _tabulate(questions: Iterable[Question]) -> Tables:
    counts: list[dict[Hashable, Counter[str]]] = [defaultdict(Counter) for _ in range(LEVELS)]
    for question in questions:
        answer = _relative(question.answer, _parsed(question.text)[1])
        for table, key in zip(counts, _keys(question.text, question.kind), strict=True):
            table[key][answer] += 1
    return [{key: seen.most_common(1)[0][0] for key, seen in table.items()} for table in counts]


def _guess(tables: Tables, question: str, kind: str, level: int) -> str:
    names = _parsed(question)[1]
    for table, key in list(zip(tables, _keys(question, kind), strict=True))[level:]:
        if key in table:
            answer = table[key]
            place = answer.removeprefix("_")
            return names[int(place)] if answer != place and int(place) < len(names) else answer
    return ""


def _best_levels(tables: Tables, held_out: Sequence[Question]) -> dict[str, int]:
    right: dict[str, Counter[int]] = defaultdict(Counter)
    for question in held_out:
        for level in range(LEVELS):
            guess = _guess(tables, question.text, question.kind, level)
            right[question.kind][level] += exact_match(question.answer, guess)
    return {kind: max(range(LEVELS), key=lambda level: hits[level]) for kind, hits in right.items()}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", type=int, default=FIT, help="training questions (%(default)s)")
    parser.add_argument("--test", type=int, default=TEST, help="test questions (%(default)s)")
    arguments = parser.parse_args()
    result = measure(arguments.fit, arguments.test)
    rounded = {kind: round(share, 3) for kind, share in result.by_kind.items()}
    low, high = (round(bound, 4) for bound in result.ci95)
    report = {
        "accuracy": round(result.accuracy, 4),
        "ci95": [low, high],
        "n": result.n,
        "by_kind": rounded,
    }
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
