"""Scores of an artifact with their intervals, and the table of two."""

from dataclasses import dataclass
from typing import Any

from comp.data.scoring import wilson_interval


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
    """Scores of one artifact, by kind of question or of measure, and what it answered."""

    overall: Score
    by_kind: dict[str, Score]
    predictions: tuple[str, ...]
    whole: str = "all"  # what the overall score is of

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: score.to_dict() for kind, score in self.by_kind.items()}
        return {**self.overall.to_dict(), "by_kind": kinds}


def markdown(dense: Evaluation, compressed: Evaluation, title: str, metric: str) -> str:
    """A table of both, one row a kind."""

    def cell(score: Score) -> str:
        low, high = score.ci95
        return f"{100 * score.accuracy:.1f} % ({100 * low:.1f}–{100 * high:.1f})"

    lines = [
        f"# {title}",
        "",
        f"{metric}, with 95 % Wilson intervals, measured on the exported artifacts.",
        "",
        "| kind | n | dense | compressed | difference |",
        "|---|--:|--:|--:|--:|",
    ]
    rows = [(kind, dense.by_kind[kind], compressed.by_kind[kind]) for kind in dense.by_kind]
    for kind, first, second in [*rows, (f"**{dense.whole}**", dense.overall, compressed.overall)]:
        change = 100 * (second.accuracy - first.accuracy)
        lines.append(f"| {kind} | {first.n} | {cell(first)} | {cell(second)} | {change:+.1f} |")
    return "\n".join(lines) + "\n"
