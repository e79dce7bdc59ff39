"""Draw the figures of a study: accuracy against FLOPs and against measured time."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comp.utils.files import writing
from serve.study.summary import RowSummary, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours; more rows repeat them with another marker.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
DENSE_COLOUR = "#8a94a6"
DPI = 144
BESIDE = 4  # points between rows at one rate
POINTS_AN_INCH = 72


def save_figures(summary: Summary, folder: Path) -> list[Path]:
    """Draw ``accuracy-flops.png`` and ``accuracy-ttft.png``; return their paths.

    At a single rate all rows have the same FLOPs, and the first figure lists the rows instead.
    """
    by_flops = accuracy_figure(
        summary,
        "GMACs; rows of a rate side by side",
        lambda row: row.macs / 1e9,
        summary.dense.macs / 1e9,
        side_by_side=True,
    )
    single = len({row.rate for row in summary.rows}) == 1
    drawn = {
        "accuracy-flops.png": rows_figure(summary) if single else by_flops,
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
    summary: Summary,
    label: str,
    place: Callable[[RowSummary], float],
    dense: float,
    *,
    side_by_side: bool = False,
) -> "Figure":
    """Draw each row as a line over its rates, with intervals, and the dense model as a level.

    ``side_by_side`` shifts each row by some points, so that intervals at one rate do not overlap.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    scale = 100 if summary.share else 1
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row.row for row in summary.rows))
    for number, name in enumerate(names):
        shift = BESIDE * (number - (len(names) - 1) / 2) if side_by_side else 0.0
        shifted = ScaledTranslation(shift / POINTS_AN_INCH, 0, figure.dpi_scale_trans)
        rows = sorted((row for row in summary.rows if row.row == name), key=place)
        places = [place(row) for row in rows]
        values = [scale * row.accuracy for row in rows]
        below, above = _errors(rows, summary.share)
        axes.errorbar(
            places,
            values,
            yerr=(below, above),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            markersize=5,
            capsize=3,
            linewidth=2 if name == summary.reference else 1.2,
            label=f"{name} ({rows[0].removes})",
            transform=axes.transData + shifted,
        )
        ends = [value - error for value, error in zip(values, below, strict=True)]
        ends += [value + error for value, error in zip(values, above, strict=True)]
        axes.update_datalim(list(zip(places * 2, ends, strict=True)))  # it ignores shifted artists
    axes.margins(x=0.08)
    level = scale * summary.dense.accuracy.value
    axes.axhline(level, color=DENSE_COLOUR, linestyle="--", linewidth=1)
    axes.annotate(
        f"dense, at {dense:.3g}",
        (0, level),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=8,
        color=DENSE_COLOUR,
    )
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel(_what(summary), fontsize=9)
    axes.set_title(f"{summary.name}: {summary.test} examples", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def rows_figure(summary: Summary) -> "Figure":
    """Draw the rows of a single rate one below the other, in table order, with their intervals."""
    from matplotlib.figure import Figure

    scale = 100 if summary.share else 1
    rows = summary.rows
    figure = Figure(figsize=(7.2, 1.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.errorbar(
            [scale * row.accuracy],
            [place],
            xerr=_errors([row], summary.share),
            color=COLOURS[0] if row.row == summary.reference else COLOURS[1],
            marker=MARKERS[0],
            markersize=5,
            capsize=3,
            linewidth=2 if row.row == summary.reference else 1.2,
        )
    level = scale * summary.dense.accuracy.value
    axes.axvline(level, color=DENSE_COLOUR, linestyle="--", linewidth=1)
    names = [
        f"{row.row} ({row.removes}; {len(row.seeds)} seed{'s' * (len(row.seeds) != 1)})"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"{_what(summary)}, at {rows[0].macs / 1e9:.3f} GMACs (dashed: dense, at "
        f"{summary.dense.macs / 1e9:.3f})",
        fontsize=9,
    )
    axes.set_title(f"{summary.name}: {summary.test} examples", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _errors(rows: Sequence[RowSummary], share: bool) -> tuple[list[float], list[float]]:
    """Lengths of intervals below and above, in the axis's units; shares are clipped to [0, 1]."""
    scale, least, most = (100, 0.0, 1.0) if share else (1, -math.inf, math.inf)
    return (
        [scale * (row.accuracy - max(least, row.interval[0])) for row in rows],
        [scale * (min(most, row.interval[1]) - row.accuracy) for row in rows],
    )


def _what(summary: Summary) -> str:
    return "accuracy, %" if summary.share else summary.metric
