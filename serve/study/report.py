"""Format the report of a study: tables like the paper's in Markdown, and figures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from comp.utils.files import write_text
from comp.utils.progress import duration
from serve.study.figures import save_figures
from serve.study.intervals import Interval
from serve.study.summary import OF_EXAMPLES, OVER_SEEDS, Margin, RowSummary, Summary

COLUMNS = (
    "row",
    "removes",
    "rate",
    "seeds",
    "accuracy (95 %)",
    "GMACs",
    "parameters",
    "TTFT",
    "speed-up",
)


def save_report(summary: Summary, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and its figures."""
    figures = save_figures(summary, folder)
    write_text(folder / "report.md", markdown(summary, figures))
    write_text(folder / "report.json", json.dumps(summary.to_dict(), indent=1) + "\n")


def table_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The main table: the dense model, then every row at every rate."""
    dense = summary.dense
    first = (
        "dense",
        "nothing",
        "0",
        "",
        _accuracy(summary, dense.accuracy.value, dense.accuracy.interval),
        _giga(dense.macs),
        _mega(dense.params),
        f"{summary.dense_ttft_ms:.2f} ms",
        "1",
    )
    return [first, *(_cells(summary, row) for row in summary.rows)]


def markdown(summary: Summary, figures: Sequence[Path]) -> str:
    """Format the whole report as Markdown."""
    parts = [
        _head(summary),
        _main(summary),
        *_margin_tables(summary),
        "\n\n".join(f"![{figure.stem}]({figure.name})" for figure in figures),
        _failures(summary),
        _making(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(summary: Summary) -> str:
    over = summary.done + len(summary.failed)
    missing = summary.cells - over
    lines = [
        f"# Study {summary.name}",
        "",
        (
            f"{summary.model}: {summary.metric}; {summary.test} examples. {summary.done} of "
            f"{summary.cells} cells are done"
        )
        + (f", **{len(summary.failed)} failed**" if summary.failed else "")
        + (f", {missing} have not run yet" if missing else "")
        + f"; finished cells took {duration(summary.seconds)}.",
    ]
    return "\n".join(lines)


def _main(summary: Summary) -> str:
    spreads = {row.spread for row in summary.rows}
    notes = []
    if OVER_SEEDS in spreads:
        notes.append("± is a 95 % interval over seeds (Student's t).")
    if OF_EXAMPLES in spreads:
        notes.append(
            "A row with one seed has in brackets the interval over the test examples (Wilson's; for means a "
            "bootstrap interval): it does not show how much seeds differ."
        )
    notes.append(
        "GMACs are multiply-accumulates, the FLOPs of the paper. TTFT is the time to the first token or the "
        "result. Each cell is timed in turn with the dense model, and a row's TTFT is the median of its "
        "cells' ratios to the dense time, multiplied by the dense model's median."
    )
    return _table(COLUMNS, table_rows(summary), 2) + "\n\n" + " ".join(notes)


def _margin_tables(summary: Summary) -> Iterator[str]:
    reference = summary.reference
    singles = [margin for margin in summary.margins if margin.best_single]
    others = [margin for margin in summary.margins if not margin.ablation]
    parts = [margin for margin in summary.margins if margin.ablation]
    if singles:
        yield (
            f"## {reference} against the best single mode\n\nAmong the rows that remove only parameters or "
            "only tokens, the most accurate one on the test split at each rate.\n\n"
        ) + _margins(summary, singles)
    if others:
        yield f"## {reference} against every other row\n\n" + _margins(summary, others)
    if parts:
        yield (
            f"## Ablation of {reference}\n\nThe margin of {reference} over itself without a part, or with "
            "another setting.\n\n"
        ) + _margins(summary, parts)


def _margins(summary: Summary, margins: Sequence[Margin]) -> str:
    accuracy = {(row.row, row.rate): row for row in summary.rows}
    rows = []
    for margin in margins:
        ours = accuracy[summary.reference or "", margin.rate]
        theirs = accuracy[margin.row, margin.rate]
        rows.append(
            (
                f"{margin.rate:g}",
                margin.row,
                margin.removes,
                _value(summary, ours.accuracy),
                _value(summary, theirs.accuracy),
                _difference(summary, margin),
                str(margin.n),
                margin.verdict,
            )
        )
    columns = ("rate", "row", "removes", summary.reference or "", "row's", "margin (95 %)")
    return (
        _table((*columns, "seeds", f"{summary.reference} is"), rows, 3)
        + "\n\nMargins are paired by seed, over the seeds that both rows have."
    )


def _failures(summary: Summary) -> str:
    if not summary.failed:
        return ""
    rows = [(failure.cell, failure.step or "", failure.reason) for failure in summary.failed]
    return "## Cells that failed\n\n" + _table(("cell", "at", "why"), rows, 3)


def _making(summary: Summary) -> str:
    lines = ["## How it was made", "", f"- Machine: {'; '.join(summary.machines)}."]
    if len(summary.machines) > 1:
        lines.append("- **Cells ran on different machines: compare speed-ups, not times.**")
    versions = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    lines.append(f"- {versions}.")
    lines.append(
        "- Artifacts of cells are exported as `comp-export onnx` does and are not verified one by one: "
        "`comp-export verify` verifies a kept run (`keep_runs`)."
    )
    if summary.unasked:
        lines.append(
            f"- The folder has records of {len(summary.unasked)} cells that are not in the study file."
        )
    settings = json.dumps(summary.settings, indent=1)
    lines += ["- The study:", "", "```json", settings, "```", ""]
    return "\n".join(lines) + "\n" + _cost_table(summary)


def _cost_table(summary: Summary) -> str:
    """The cost of cells: training steps, which should be equal for all, and time."""
    rows = []
    for row in summary.rows:
        low, high = row.steps
        steps = f"{low}" if low == high else f"{low} to {high}"
        share = row.tpot_share
        tpot = "" if share is None else f"{share * summary.dense_tpot_ms:.2f} ms"
        times = row.times_fine_tuning
        pruning = "" if times is None else f"{times:.2f}×"
        rows.append((row.row, f"{row.rate:g}", steps, duration(row.seconds), pruning, tpot))
    columns = ("row", "rate", "training steps", "time of a cell", "pruning", "TPOT")
    table = _table(columns, rows, 1)
    if any(row.times_fine_tuning for row in summary.rows):
        table += "\n\nPruning: its time relative to plain fine-tuning for the same number of steps, median."
    if len({steps for row in summary.rows for steps in row.steps}) > 1:
        table += "\n\n**Not all cells trained for the same number of steps: see above.**"
    return table


def _cells(summary: Summary, row: RowSummary) -> tuple[str, ...]:
    return (
        row.row,
        row.removes,
        f"{row.rate:g}",
        str(len(row.seeds)),
        _accuracy(summary, row.accuracy, row.interval, over_seeds=row.spread == OVER_SEEDS),
        _giga(row.macs),
        _mega(row.params),
        f"{row.ttft_share * summary.dense_ttft_ms:.2f} ms",
        f"{1 / row.ttft_share:.2f}×",
    )


def _accuracy(summary: Summary, value: float, interval: Interval, over_seeds: bool = False) -> str:
    low, high = interval
    if over_seeds:
        return f"{_value(summary, value)} ± {_value(summary, (high - low) / 2)}"
    return f"{_value(summary, value)} ({_value(summary, low)}–{_value(summary, high)})"


def _value(summary: Summary, value: float) -> str:
    """Format a value, in per cent if the metric is a share."""
    return f"{100 * value:.1f}" if summary.share else f"{value:.3f}"


def _difference(summary: Summary, margin: Margin) -> str:
    sign = "+" if margin.margin >= 0 else "−"
    text = f"{sign}{_value(summary, abs(margin.margin))}"
    if margin.interval is None:
        return text
    low, high = margin.interval
    return f"{text} ± {_value(summary, (high - low) / 2)}"


def _giga(macs: float) -> str:
    return f"{macs / 1e9:.3f}"


def _mega(params: float) -> str:
    return f"{params / 1e6:.2f} M"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    rule = "".join("--:|" if place >= numbers_from else "---|" for place in range(len(columns)))
    lines = [f"| {' | '.join(columns)} |", f"|{rule}"]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines)
