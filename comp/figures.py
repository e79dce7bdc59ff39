"""Figures of a pruning run: how the search went, and what it left of each layer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from comp.errors import CompExportError
from comp.files import writing
from comp.flops import keep_ratios, token_counts
from comp.plan import BlockPlan, Part, PruningPlan
from comp.runs import RunDirectory

# Okabe and Ito's colours, which colour-blind readers can tell apart.
MODE_COLOURS = {
    "vision_tokens": "#0072b2",
    "language_tokens": "#56b4e9",
    "language_parameters": "#d55e00",
    "vision_parameters": "#e69f00",
    "cross_parameters": "#009e73",
}
PARTS: tuple[Part, ...] = ("vision", "cross", "language")
OTHER_COLOUR = "#999999"
INK = "#333333"
DPI = 144


def read_stages(path: Path) -> list[dict[str, Any]]:
    """The lines of ``stages.jsonl``.

    Raises:
        CompExportError: when it is missing or a line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise CompExportError(f"cannot read {path}: {error.strerror}; prune again") from error
    except ValueError as error:
        raise CompExportError(f"{path} is damaged ({error}): prune again with --force") from error


def trajectory_figure(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Stage by stage: FLOPs removed, coloured by mode; the metric; each mode's running cost."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    removed, metric, costs = figure.subplots(3, 1, sharex=True)
    numbers = [stage["stage"] for stage in stages]
    colours = [MODE_COLOURS.get(stage["mode"], OTHER_COLOUR) for stage in stages]
    removed.bar(numbers, [100 * stage["rate"] for stage in stages], color=colours)
    for stage in stages:
        if stage.get("explored"):
            removed.text(stage["stage"], 100 * stage["rate"], "?", ha="center", va="bottom")
    _explain_modes(removed, stages)
    _label(removed, "Mode of each stage (?: drawn by exploration)", "FLOPs removed, %")
    metric.plot(numbers, [100 * stage["metric"] for stage in stages], "o-", color=INK)
    _label(metric, "Validation metric after the stage", "%")
    for mode in _modes(stages):
        values = [stage["costs"].get(mode) for stage in stages]
        colour = MODE_COLOURS.get(mode, OTHER_COLOUR)
        costs.plot(numbers, values, "o-", color=colour, label=mode, markersize=4)
    _label(costs, "Running cost of each mode (metric lost per FLOP removed)", "cost")
    costs.set_xlabel("stage")
    costs.set_xticks(numbers)
    return figure


def structure_figure(plan: PruningPlan) -> Figure:
    """Layer by layer: heads and FFN channels that stay, and tokens that reach the layer."""
    parts = [part for part in PARTS if plan.part(part)]
    figure = Figure(figsize=(4.2 * len(parts) + 4.2, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, len(parts) + 1, width_ratios=[1] * len(parts) + [1.15])
    for column, part in enumerate(parts):
        blocks = plan.part(part)
        heads = figure.add_subplot(grid[0, column])
        totals = [block.num_attention_heads for block in blocks]
        _bars(heads, blocks, [len(block.kept_heads) for block in blocks], totals)
        _label(heads, f"{part}: attention heads", "heads")
        channels = figure.add_subplot(grid[1, column])
        widths = [block.intermediate_size for block in blocks]
        _bars(channels, blocks, [len(block.kept_channels) for block in blocks], widths)
        _label(channels, f"{part}: FFN channels", "channels")
        channels.set_xlabel("block")
    tokens = figure.add_subplot(grid[:, len(parts)])
    _tokens(tokens, plan)
    removed = 1 - plan.macs / plan.macs_dense
    figure.suptitle(f"{Path(plan.model).name}, {plan.method}: {removed:.1%} of the FLOPs removed")
    return figure


def save_figures(run: RunDirectory, folder: Path | None = None) -> list[Path]:
    """Draw a run into ``reports/`` (or ``folder``): ``trajectory.png`` and ``structure.png``."""
    folder = run.reports if folder is None else folder
    figures = {
        "trajectory.png": trajectory_figure(read_stages(run.stages)),
        "structure.png": structure_figure(run.load_plan()),
    }
    for name, figure in figures.items():
        with writing(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
    return [folder / name for name in figures]


def tokens_by_layer(plan: PruningPlan) -> tuple[list[int], list[int]]:
    """Vision and text tokens that each language block sees on the plan's workload."""
    load, layers = plan.workload, len(plan.part("language"))
    counts = token_counts(layers, load.image_tokens, load.text_tokens, keep_ratios(plan.drops))
    return [vision for vision, _ in counts], [text for _, text in counts]


def _tokens(axes: Axes, plan: PruningPlan) -> None:
    vision, text = tokens_by_layer(plan)
    layers = range(len(vision))
    axes.bar(layers, vision, color=MODE_COLOURS["vision_tokens"], label="vision")
    axes.bar(layers, text, bottom=vision, color=MODE_COLOURS["language_tokens"], label="text")
    for drop in plan.drops:
        top = vision[drop.after_layer] + text[drop.after_layer]
        axes.annotate(
            f"{drop.vision_keep_ratio:.1%}\n{drop.text_keep_ratio:.1%}",
            (drop.after_layer - 0.5, top),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
        )
    axes.legend(fontsize=8, frameon=False)
    _label(axes, "tokens a block sees (keep ratios: vision, text)", "tokens")
    axes.set_xlabel("block")


def _bars(
    axes: Axes, blocks: Sequence[BlockPlan], kept: Sequence[int], totals: Sequence[int]
) -> None:
    places = [block.index for block in blocks]
    axes.bar(places, totals, color="#e5e5e5")
    colour = MODE_COLOURS[f"{blocks[0].part}_parameters"]
    axes.bar(places, kept, color=colour)


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _modes(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(mode for stage in stages for mode in stage["costs"]))


def _explain_modes(axes: Axes, stages: Sequence[Mapping[str, Any]]) -> None:
    handles = [
        Patch(color=MODE_COLOURS.get(mode, OTHER_COLOUR), label=mode.replace("_", " "))
        for mode in _modes(stages)
    ]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left")
