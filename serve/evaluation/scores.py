"""Scores of an artifact with their intervals, and the table that compares two artifacts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from comp.metrics.exact_match import wilson_interval
from serve.generation.options import GenerationOptions

CHUNK = 128  # examples held in memory at a time, sorted into batches of equal length
RESAMPLES, SEED = 1000, 0
T = TypeVar("T", covariant=True)


class Figure(Protocol):
    """A measured quantity with its interval."""

    @property
    def n(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...

    def cell(self) -> str:
        """Text of a table cell, with the interval."""
        ...

    def change(self, other: Any) -> str:
        """The difference of another figure of the same kind to this one."""
        ...


@dataclass(frozen=True)
class Score:
    """A count of right answers out of ``n``, with Wilson's 95 % interval."""

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

    def cell(self) -> str:
        return _percent(self.accuracy, self.ci95)

    def change(self, other: "Score") -> str:
        return f"{100 * (other.accuracy - self.accuracy):+.1f}"


@dataclass(frozen=True)
class Mean:
    """The mean of a graded measure, with a 95 % bootstrap interval.

    ``share``: whether it lies between 0 and 1 and is shown in per cent.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    share: bool = False

    @classmethod
    def of(cls, values: Sequence[float], share: bool = False) -> "Mean":
        """Return the mean of one value per example; the interval is the middle 95 % of resampled means."""
        samples = np.asarray(values, dtype=np.float64)
        rng = np.random.default_rng(SEED)
        drawn = [
            samples[rng.integers(samples.size, size=samples.size)].mean() for _ in range(RESAMPLES)
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return cls(float(samples.mean()), (float(low), float(high)), samples.size, share)

    def to_dict(self) -> dict[str, Any]:
        name = "accuracy" if self.share else "mean"
        return {name: self.value, "ci95": list(self.ci95), "n": self.n}

    def cell(self) -> str:
        if self.share:
            return _percent(self.value, self.ci95)
        return f"{self.value:.3f} ({self.ci95[0]:.3f}–{self.ci95[1]:.3f})"

    def change(self, other: "Mean") -> str:
        change = other.value - self.value
        return f"{100 * change:+.1f}" if self.share else f"{change:+.3f}"


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


@dataclass(frozen=True)
class Evaluation:
    """The figures of one artifact, overall and by kind of question or measure, and its predictions.

    ``metric`` names the overall figure where that depends on the examples; otherwise the measure does.
    """

    overall: Figure
    by_kind: dict[str, Figure]
    predictions: tuple[str, ...]
    whole: str = "all"  # name of the overall figure in tables
    metric: str | None = None

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: figure.to_dict() for kind, figure in self.by_kind.items()}
        return {**self.overall.to_dict(), "by_kind": kinds}

    @property
    def rows(self) -> dict[str, Figure]:
        """Every figure by name, the overall one last."""
        return {**self.by_kind, self.whole: self.overall}


class Examples(Protocol[T]):
    """Examples by index, each read when accessed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T: ...


def chunks(examples: Examples[T]) -> Iterator[list[T]]:
    """Examples in order, in chunks that fit into memory."""
    for first in range(0, len(examples), CHUNK):
        yield [examples[i] for i in range(first, min(first + CHUNK, len(examples)))]


def markdown(dense: Evaluation, compressed: Evaluation, title: str, metric: str) -> str:
    """A Markdown table of both artifacts, one row per kind."""
    lines = [
        f"# {title}",
        "",
        (
            f"{metric[0].upper()}{metric[1:]}, with 95 % intervals (of counts Wilson's, of means by "
            "bootstrap), measured on the exported artifacts."
        ),
        "",
        "| | n | dense | compressed | difference |",
        "|---|--:|--:|--:|--:|",
    ]
    second = compressed.rows
    for kind, figure in dense.rows.items():
        name = f"**{kind}**" if kind == dense.whole else kind
        other = second[kind]
        cells = (name, str(figure.n), figure.cell(), other.cell(), figure.change(other))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class MeasureOptions:
    """Options of a measurement.

    Attributes:
        batch_size: examples answered together.
        max_new_tokens: length of an answer or a caption.
        gallery: number of pairs ranked together in retrieval.
        seed: seed of generation.
    """

    batch_size: int = 16
    max_new_tokens: int = 32
    gallery: int = 200
    seed: int = 0

    @property
    def generation(self) -> GenerationOptions:
        """Options of generation: greedy."""
        return GenerationOptions(max_new_tokens=self.max_new_tokens, seed=self.seed)


@dataclass(frozen=True)
class Measure:
    """The measure of a task.

    Attributes:
        metric: name of the overall figure, in words, unless the evaluation names another.
        run: returns the scores from engine, examples and a progress callback.
    """

    metric: str
    run: Callable[[Any, Any, Callable[[int], None]], Evaluation]

    def metric_of(self, evaluation: Evaluation) -> str:
        """Name of the overall figure of an evaluation."""
        return evaluation.metric or self.metric

    def __call__(self, engine: Any, examples: Any, advance: Callable[[int], None]) -> Evaluation:
        """Measure an engine on examples; ``advance`` is called with the number of examples done."""
        return self.run(engine, examples, advance)
