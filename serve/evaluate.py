"""Accuracy of an artifact: exact match, overall and for each kind of question."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from comp.data.example import Example
from comp.data.scoring import exact_match, wilson_interval
from serve.engine import Engine
from serve.options import GenerationOptions

CHUNK = 128  # questions held in memory at a time, sorted into batches of equal length


class Examples(Protocol):
    """Questions by index, read only when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class Score:
    """So many right of so many asked; the interval is Wilson's, at 95 %."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n if self.n else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.n)

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "n": self.n,
            "right": self.right,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one artifact, and what it answered."""

    overall: Score
    by_kind: dict[str, Score]
    predictions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: score.to_dict() for kind, score in self.by_kind.items()}
        return {**self.overall.to_dict(), "by_kind": kinds}


def evaluate(
    engine: Engine,
    examples: Examples,
    options: GenerationOptions,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Ask every question and compare the answers.

    Args:
        engine: the artifact.
        examples: the questions; read once, in order.
        options: how to generate.
        batch_size: questions of equal length answered together (the answers do not depend on it).
        advance: told after every chunk how many questions it had.

    Returns:
        Kinds in the order in which they first occur.
    """
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    predictions: list[str] = []
    for chunk in _chunks(examples):
        requests = [([example.image], example.question) for example in chunk]
        answers = engine.generate_batch(requests, options, batch_size)
        for example, answer in zip(chunk, answers, strict=True):
            asked[example.kind] = asked.get(example.kind, 0) + 1
            hit = exact_match(example.answer, answer.text)
            right[example.kind] = right.get(example.kind, 0) + hit
            predictions.append(answer.text)
        advance(len(chunk))
    overall = Score(sum(right.values()), sum(asked.values()))
    return Evaluation(overall, {k: Score(right[k], asked[k]) for k in asked}, tuple(predictions))


def _chunks(examples: Examples) -> Iterator[list[Example]]:
    for first in range(0, len(examples), CHUNK):
        yield [examples[i] for i in range(first, min(first + CHUNK, len(examples)))]


def markdown(dense: Evaluation, compressed: Evaluation, title: str) -> str:
    """A table of both, one row a kind."""

    def cell(score: Score) -> str:
        low, high = score.ci95
        return f"{100 * score.accuracy:.1f} % ({100 * low:.1f}–{100 * high:.1f})"

    lines = [
        f"# {title}",
        "",
        "Exact match with 95 % Wilson intervals, measured on the ONNX artifacts.",
        "",
        "| kind | n | dense | compressed | difference |",
        "|---|--:|--:|--:|--:|",
    ]
    rows = [(kind, dense.by_kind[kind], compressed.by_kind[kind]) for kind in dense.by_kind]
    for kind, first, second in [*rows, ("**all**", dense.overall, compressed.overall)]:
        change = 100 * (second.accuracy - first.accuracy)
        lines.append(f"| {kind} | {first.n} | {cell(first)} | {cell(second)} | {change:+.1f} |")
    return "\n".join(lines) + "\n"
