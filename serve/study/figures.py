"""Figures of a study: accuracy against FLOPs and against measured time."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from comp.files import writing
from serve.study.summary import RowSummary, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours; a shape for each round of them tells more rows apart.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
DENSE_COLOUR = "#8a94a6"
DPI = 144


def save_figures(summary: Summary, folder: Path) -> list[Path]:
    """Draw ``accuracy-flops.png`` and ``accuracy-ttft.png``; return their paths."""
    drawn = {
        "accuracy-flops.png": accuracy_figure(
            summary,
            "GFLOPs (multiply-accumulates)",
            lambda row: row.macs / 1e9,
            summary.dense.macs / 1e9,
        ),
        "accuracy-ttft.png": accuracy_figure(
            summary,
            "time to first token, % of the dense model's in the same rounds",
            lambda row: 100 * row.ttft_share,
            100.0,
        ),
    }
    for name, figure in drawn.items():
        with writing(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
    return [folder / name for name in drawn]


def accuracy_figure(
    summary: Summary, label: str, place: Callable[[RowSummary], float], dense: float
) -> "Figure":
    """Each row a line over its rates, with the intervals of the table; the dense model a level."""
    from matplotlib.figure import Figure

    scale = 100 if summary.share else 1
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row.row for row in summary.rows)):
        rows = sorted((row for row in summary.rows if row.row == name), key=place)
        values = [scale * row.accuracy for row in rows]
        below = [scale * (row.accuracy - row.interval[0]) for row in rows]
        above = [scale * (row.interval[1] - row.accuracy) for row in rows]
        axes.errorbar(
            [place(row) for row in rows],
            values,
            yerr=(below, above),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            markersize=5,
            capsize=3,
            linewidth=2 if name == summary.reference else 1.2,
            label=f"{name} ({rows[0].removes})",
        )
    level = scale * summary.dense.accuracy.value
    axes.axhline(level, color=DENSE_COLOUR, linestyle="--", linewidth=1)
    axes.annotate(
        f"dense, at {dense:.3g}",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -10),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=DENSE_COLOUR,
    )
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("accuracy, %" if summary.share else summary.metric, fontsize=9)
    axes.set_title(f"{summary.name}: {summary.test} examples", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
