"""Read the numbers that a run's reports hold: measured accuracy and times."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.artifacts import Which

EVAL, BENCH = "eval", "bench"


@dataclass(frozen=True)
class Accuracy:
    """The measured accuracy of both models.

    Attributes:
        dense, compressed: shares of right answers, or means of another measure.
        n: number of examples.
        is_share: whether they are shares, which are shown in per cent.
        data: name of the data.
    """

    dense: float
    compressed: float
    n: int
    is_share: bool
    data: str

    def __str__(self) -> str:
        if self.is_share:
            return f"{100 * self.dense:.1f} → {100 * self.compressed:.1f} %"
        return f"{self.dense:.3f} → {self.compressed:.3f}"


@dataclass(frozen=True)
class RunReports:
    """``reports/eval.json`` and ``reports/bench.json`` of a run; empty where there is none."""

    evaluated: dict[str, Any]
    benched: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, suffix: str = "") -> "RunReports":
        """Read the reports of a variant of the artifacts; damaged ones count as missing.

        Args:
            folder: the ``reports`` directory.
            suffix: that of the variant, as in ``ArtifactVariant.suffix``.
        """
        return cls(_read(folder / f"{EVAL}{suffix}.json"), _read(folder / f"{BENCH}{suffix}.json"))

    @property
    def accuracy(self) -> Accuracy | None:
        """The overall accuracy; ``None`` if it was not measured."""
        try:
            dense, compressed = self.evaluated["dense"], self.evaluated["compressed"]
            key = "accuracy" if "accuracy" in dense else "mean"
            data = str(self.evaluated["data"]["name"])
            return Accuracy(dense[key], compressed[key], dense["n"], key == "accuracy", data)
        except (KeyError, TypeError):
            return None

    def median_ms(self, which: Which, measure: str) -> float | None:
        """A median of the bench in milliseconds, such as ``ttft_ms``; ``None`` if it was not measured."""
        try:
            value = self.benched[which][measure]
        except (KeyError, TypeError):
            return None
        return float(value) if isinstance(value, (int, float)) and value > 0 else None


NO_REPORTS = RunReports({}, {})


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
