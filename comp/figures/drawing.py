"""Draw the figures of mode shares, token overlap and rank stability."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from comp.figures.mode_shares import ModeShare
from comp.figures.rank_stability import PROGRESS, Case, Chosen, Stability
from comp.figures.run_figures import INK, MODE_COLOURS, OTHER_COLOUR, PARTS, headline, label_axes
from comp.figures.spread import Spread
from comp.figures.token_overlap import TOP, Overlap, Sublayer
from comp.masks import BlockKey
from comp.plan import Part, PruningPlan

WITH, WITHOUT = "#0072b2", "#d55e00"  # with and without CIP or CIT; Okabe and Ito's, as for modes
SUBLAYERS: dict[Sublayer, str] = {"heads": "attention", "channels": "FFN"}
STYLES: dict[Chosen, str] = {"run": "o-", "random": "^:"}
HEADS: dict[Chosen, str] = {
    "run": "heads that the run removed",
    "random": "the same number at random",
}


def shares_figure(shares: Sequence[ModeShare], plan: PruningPlan) -> Figure:
    """Draw a bar for each mode, by stage, and one for finalising, in per cent of the FLOPs removed."""
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(shares)), layout="constrained")
    axes = figure.subplots()
    removed = (plan.macs_dense - plan.macs) / 100
    for row, share in enumerate(shares):
        start = 0.0
        colour = MODE_COLOURS.get(share.mode, OTHER_COLOUR)
        for number, macs in share.stages or ((0, share.macs),):
            axes.barh(row, macs / removed, left=start, color=colour, edgecolor="white")
            if number and abs(macs / removed) > 2.5:
                middle = start + macs / removed / 2
                axes.text(middle, row, str(number), ha="center", va="center", **_on(colour))
            start += macs / removed
        words = f" {share.share:.1%} ({share.macs / 1e9:,.3g} GMACs)"
        axes.text(max(start, 0.0), row, words, va="center", fontsize=8, color=INK)
    names = [share.mode.replace("_", " ").replace("+", " and\n") for share in shares]
    axes.set_yticks(range(len(shares)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.3 * (right - left))  # space for the labels
    title = "Each mode's share of what was removed, by stage (number of the stage in the bar)"
    label_axes(axes, title, "")
    axes.set_xlabel("share of the FLOPs removed, %", fontsize=8)
    figure.suptitle(headline(plan), fontsize=11)
    return figure


def overlap_figure(overlaps: Sequence[Overlap], samples: int, plan: PruningPlan) -> Figure:
    """Draw the overlap over the blocks, with and without CIP, for attention and FFN of each part."""
    parts = _parts(overlap.key for overlap in overlaps)
    figure = Figure(figsize=(9, 1.2 + 2.5 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), 2, squeeze=False, sharey=True)
    for row, part in zip(grid, parts, strict=True):
        for axes, (sublayer, name) in zip(row, SUBLAYERS.items(), strict=True):
            of_panel = [o for o in overlaps if o.key[0] == part and o.sublayer == sublayer]
            if not of_panel:  # cross-attention has no FFN
                axes.set_axis_off()
                continue
            blocks = [overlap.key[1] for overlap in of_panel]
            _band(axes, blocks, [o.with_cip for o in of_panel], WITH, "o-", "with CIP (Eq. 4)")
            plain = [o.without_cip for o in of_panel]
            _band(axes, blocks, plain, WITHOUT, "s--", "without CIP (Eq. 3)")
            chance = [100 * o.chance for o in of_panel]
            axes.plot(blocks, chance, ":", color=INK, linewidth=1, label="by chance")
            axes.set_ylim(0, 105)
            axes.set_xticks(blocks)
            axes.set_xlabel("block", fontsize=8)
            label_axes(axes, f"{part}: {name}", "overlap |A ∩ B| / k, %")
    _one_legend(figure, grid[0][0], columns=3)
    figure.suptitle(
        f"{headline(plan)}\nDeciding tokens against important tokens, dense model, top {TOP:.0%}, "
        f"{samples} examples (mean ± standard deviation)",
        fontsize=10,
    )
    return figure


def stability_figure(stabilities: Sequence[Stability], samples: int, plan: PruningPlan) -> Figure:
    """Draw stability for each part: heads of one block masked, all heads masked, and by progress."""
    parts = _parts(each.key for each in stabilities)
    figure = Figure(figsize=(12, 1.5 + 2.7 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), 3, squeeze=False, sharey="row")
    for (alone, together, on_the_way), part in zip(grid, parts, strict=True):
        of_part = [each for each in stabilities if each.key[0] == part]
        for chosen, style in STYLES.items():
            for calibrated in (True, False):
                colour = WITH if calibrated else WITHOUT
                name = f"{HEADS[chosen]}, {'with' if calibrated else 'without'} CIT"
                for axes, single in ((alone, True), (together, False)):
                    case = Case(chosen, 1.0, calibrated, alone=single)
                    end = [each for each in of_part if each.case == case]
                    blocks, means = [s.key[1] for s in end], [s.correlation.mean for s in end]
                    axes.plot(blocks, means, style, color=colour, markersize=4, label=name)
                means = [
                    _mean_of(of_part, Case(chosen, progress, calibrated)) for progress in PROGRESS
                ]
                on_the_way.plot((0.0, *PROGRESS), (1.0, *means), style, color=colour, markersize=4)
        for axes in (alone, together):
            axes.set_xticks(sorted({s.key[1] for s in of_part}))
            axes.set_xlabel("block", fontsize=8)
        alone.set_xlim(together.get_xlim())
        on_the_way.set_xlabel("progress of masking (0: dense, 1: removed)", fontsize=8)
        label_axes(alone, f"{part}: heads of this block removed", "Spearman's correlation")
        label_axes(together, f"{part}: heads of all blocks removed", "")
        label_axes(on_the_way, f"{part}: by progress, mean of the blocks", "")
    _one_legend(figure, grid[0][1], columns=4)
    figure.suptitle(
        f"{headline(plan)}\nRanks of tokens under masked heads against the dense model's, "
        f"{samples} examples, mean",
        fontsize=10,
    )
    return figure


def _on(colour: str) -> dict[str, Any]:
    """Return the style of a label on a bar: white on a dark colour."""
    red, green, blue = to_rgb(colour)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    return {"color": "white" if dark else INK, "fontsize": 8}


def _band(
    axes: Axes, places: Sequence[int], spreads: Sequence[Spread], colour: str, style: str, name: str
) -> None:
    """Draw means in per cent with a band of one standard deviation."""
    means = 100 * np.array([spread.mean for spread in spreads])
    deviations = 100 * np.array([spread.deviation for spread in spreads])
    low, high = np.clip(means - deviations, 0, 100), np.clip(means + deviations, 0, 100)
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(places, means, style, color=colour, markersize=4, label=name)


def _mean_of(stabilities: Sequence[Stability], case: Case) -> float:
    return float(np.mean([each.correlation.mean for each in stabilities if each.case == case]))


def _one_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Draw one legend below all panels, which show the same lines."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )


def _parts(keys: Iterable[BlockKey]) -> list[Part]:
    present = {part for part, _ in keys}
    return [part for part in PARTS if part in present]
