"""The outcome of one hostile input."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["refused", "same", "other"]


@dataclass(frozen=True)
class Outcome:
    """One input and its outcome.

    Attributes:
        kind: the kind of input.
        seed: reproduces the input, together with the kind.
        verdict: ``refused`` with a ``CompExportError`` that names it, the ``same`` answer as the
            reference for this input, or anything ``other``.
        detail: the change, and the message or the difference.
    """

    kind: str
    seed: int
    verdict: Verdict
    detail: str


def counted(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Count each verdict, by kind."""
    result: dict[str, Counter[str]] = {}
    for each in outcomes:
        result.setdefault(each.kind, Counter())[each.verdict] += 1
    verdicts = ("refused", "same", "other")
    return {kind: {name: count[name] for name in verdicts} for kind, count in result.items()}


def table(counts: dict[str, dict[str, int]]) -> str:
    """Return counts as a table in Markdown."""
    total = {
        name: sum(each[name] for each in counts.values()) for name in ("refused", "same", "other")
    }
    lines = [
        "| input | tried | refused by name | same answer | anything else |",
        "|---|---|---|---|---|",
    ]
    for kind, each in [*counts.items(), ("all", total)]:
        row = (kind, sum(each.values()), each["refused"], each["same"], each["other"])
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"
