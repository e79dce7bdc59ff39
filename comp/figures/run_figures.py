"""Draw the figures of a pruning run: trajectory of the search, and structure of the layers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch

from comp.errors import CompExportError
from comp.flops.encoder import ANSWER_LENGTH
from comp.flops.llava import keep_ratios, token_counts
from comp.plan import BlockPlan, Part, PruningPlan, images_of
from comp.registry.families import family_called
from comp.runs import RunDirectory
from comp.utils.files import writing

if TYPE_CHECKING:
    from comp.masks import BlockKey

# Okabe and Ito's colours, which colour-blind readers can tell apart.
MODE_COLOURS = {
    "vision_tokens": "#0072b2",
    "language_tokens": "#56b4e9",
    "language_parameters": "#d55e00",
    "vision_parameters": "#e69f00",
    "cross_parameters": "#009e73",
}
KIND_MODES = {"vision": "vision_tokens", "text": "language_tokens"}  # by thresholds' names
PARTS: tuple[Part, ...] = ("vision", "cross", "language")
OTHER_COLOUR = "#999999"
INK = "#333333"
DPI = 144


def read_stages(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``stages.jsonl``.

    Raises:
        CompExportError: it is missing, or a line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise CompExportError(f"cannot read {path}: {error.strerror}; prune again") from error
    except ValueError as error:
        raise CompExportError(f"{path} is damaged ({error}): prune again with --force") from error


def trajectory_figure(stages: Sequence[Mapping[str, Any]], plan: PruningPlan) -> Figure:
    """Draw by stage: FLOPs left, coloured by mode; the metric; token thresholds; each mode's running cost.

    The panel of thresholds is left out if no stage raised one.
    """
    raised = [kind for kind in KIND_MODES if any(stage["thresholds"][kind] for stage in stages)]
    figure = Figure(figsize=(9, 9 if raised else 7.2), layout="constrained")
    panels = list(figure.subplots(4 if raised else 3, 1, sharex=True))
    numbers = [stage["stage"] for stage in stages]
    _flops_left(panels.pop(0), stages, plan)
    _quality(panels.pop(0), stages)
    if raised:
        axes = panels.pop(0)
        for kind in raised:
            mode = KIND_MODES[kind]
            values = [stage["thresholds"][kind] for stage in stages]
            colour = MODE_COLOURS[mode]
            axes.plot(numbers, values, "o-", color=colour, label=mode, markersize=4)
        label_axes(axes, "Token thresholds as last raised (0: not yet)", "importance / mean")
    costs = panels.pop(0)
    for mode in _modes(stages):
        values = [stage["costs"].get(mode) for stage in stages]
        colour = MODE_COLOURS.get(mode, OTHER_COLOUR)
        costs.plot(numbers, values, "o-", color=colour, label=mode, markersize=4)
    what = "time" if plan.rate_of == "latency" else "FLOPs"
    label_axes(
        costs, f"Running cost of each mode (quality lost per share of {what} removed)", "cost"
    )
    costs.set_xlabel("stage", fontsize=8)
    costs.set_xticks(numbers)
    figure.suptitle(headline(plan), fontsize=11)
    return figure


def _flops_left(axes: Axes, stages: Sequence[Mapping[str, Any]], plan: PruningPlan) -> None:
    numbers = [stage["stage"] for stage in stages]
    by_time = plan.rate_of == "latency"  # rates are then shares of time
    left = [
        100 * (stage["macs"] / plan.macs_dense if by_time else 1 - stage["rate"])
        for stage in stages
    ]
    colours = [MODE_COLOURS.get(stage["mode"], OTHER_COLOUR) for stage in stages]
    axes.bar(numbers, left, color=colours)
    for stage, height in zip(stages, left, strict=True):
        if stage.get("explored"):
            axes.text(stage["stage"], height, "?", ha="center", va="bottom")
    axes.axhline(100 * plan.macs / plan.macs_dense, color=INK, linestyle="--", linewidth=1)
    axes.set_ylim(0, 105)
    _explain_modes(axes, stages)
    label_axes(
        axes, "Mode of each stage (?: drawn by exploration; dashed: the plan)", "FLOPs left, %"
    )


def _quality(axes: Axes, stages: Sequence[Mapping[str, Any]]) -> None:
    numbers = [stage["stage"] for stage in stages]
    if all(stage["metric"] is not None for stage in stages):
        axes.plot(numbers, [100 * stage["metric"] for stage in stages], "o-", color=INK)
        label_axes(axes, "Validation metric after the stage", "%")
    else:
        axes.plot(numbers, [stage["validation_loss"] for stage in stages], "o-", color=INK)
        label_axes(axes, "Validation loss after the stage, on the examples of the cost", "nats")


def structure_figure(plan: PruningPlan) -> Figure:
    """Draw by layer: heads and FFN channels that stay, and tokens that reach the layer."""
    parts = [part for part in PARTS if plan.part(part)]
    figure = Figure(figsize=(4.2 * len(parts) + 4.2, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, len(parts) + 1, width_ratios=[1] * len(parts) + [1.15])
    for column, part in enumerate(parts):
        blocks = plan.part(part)
        heads = figure.add_subplot(grid[0, column])
        totals = [block.num_attention_heads for block in blocks]
        _bars(heads, blocks, [len(block.kept_heads) for block in blocks], totals)
        label_axes(heads, f"{part}: attention heads", "heads")
        if part == "cross":  # heads only
            heads.set_xlabel("block")
            continue
        channels = figure.add_subplot(grid[1, column])
        widths = [block.intermediate_size for block in blocks]
        _bars(channels, blocks, [len(block.kept_channels) for block in blocks], widths)
        label_axes(channels, f"{part}: FFN channels", "channels")
        channels.set_xlabel("block")
    _tokens(figure, grid, len(parts), plan)
    figure.suptitle(headline(plan))
    return figure


def headline(plan: PruningPlan) -> str:
    """Title of every figure of a run: model, method and rate."""
    removed = 1 - plan.macs / plan.macs_dense
    return f"{Path(plan.model).name}, {plan.method}: {removed:.1%} of the FLOPs removed"


def save_figures(run: RunDirectory, folder: Path | None = None) -> list[Path]:
    """Draw a run into ``reports/`` (or ``folder``): ``trajectory.png`` and ``structure.png``."""
    folder = run.reports if folder is None else folder
    plan = run.load_plan()
    return [
        save_figure(trajectory_figure(read_stages(run.stages), plan), folder / "trajectory.png"),
        save_figure(structure_figure(plan), folder / "structure.png"),
    ]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG atomically; return its path."""
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


def tokens_by_block(plan: PruningPlan) -> "dict[BlockKey, tuple[int, int]]":
    """Vision and text tokens that reach each block on the plan's workload.

    LLaVA's language blocks see both kinds, and its tower drops none. The towers of other families see one
    kind each. Statements count the tokens of both images. The decoder of BLIP's question answering, the
    second half of the language blocks, sees the tokens of an answer.
    """
    load, images = plan.workload, images_of(plan.task)
    seen, selection = load.image_tokens, plan.image_selection
    if selection is not None:
        seen = selection.arriving(seen)
    family = family_called(plan.family)
    both = family is not None and family.reads_image_tokens
    starts: dict[Part, tuple[int, int]] = {}
    if not both:
        starts["vision"] = (load.image_tokens // images, 0)
    starts["language"] = (seen if both else 0, load.text_tokens)
    tokens: dict[BlockKey, tuple[int, int]] = {}
    for part, start in starts.items():
        blocks = len(plan.part(part))
        ratios = keep_ratios(drop for drop in plan.drops if drop.part == part)
        if part == "language" and plan.task == "question" and not both:
            counts = token_counts(blocks // 2, *start, ratios)
            counts += [(0, ANSWER_LENGTH)] * (blocks - blocks // 2)
        else:
            counts = token_counts(blocks, *start, ratios)
        tokens |= {
            (part, index): (vision * images, text) for index, (vision, text) in enumerate(counts)
        }
    return tokens


def _tokens(figure: Figure, grid: GridSpec, column: int, plan: PruningPlan) -> None:
    """Draw the tokens of each part, one below the other."""
    counts = tokens_by_block(plan)
    parts = list(dict.fromkeys(part for part, _ in counts))
    for row, part in enumerate(parts):
        place = grid[:, column] if len(parts) == 1 else grid[row, column]
        _tokens_of(figure.add_subplot(place), plan, part, counts)


def _tokens_of(
    axes: Axes, plan: PruningPlan, part: Part, counts: "Mapping[BlockKey, tuple[int, int]]"
) -> None:
    of_part = [count for (of, _), count in counts.items() if of == part]
    vision, text = [count[0] for count in of_part], [count[1] for count in of_part]
    layers = range(len(of_part))
    if any(vision):
        axes.bar(layers, vision, color=MODE_COLOURS["vision_tokens"], label="vision")
    if any(text):
        colour = MODE_COLOURS["language_tokens"]
        axes.bar(layers, text, bottom=vision, color=colour, label="text")
    for drop in plan.drops:
        if drop.part != part:
            continue
        shown = [
            f"{ratio:.1%}"
            for ratio, kind in ((drop.vision_keep_ratio, vision), (drop.text_keep_ratio, text))
            if any(kind)
        ]
        # No block follows a drop in the last block.
        block_after = min(drop.after_layer, len(of_part) - 1)
        axes.annotate(
            "\n".join(shown),
            (drop.after_layer - 0.5, vision[block_after] + text[block_after]),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
        )
    axes.legend(fontsize=8, frameon=False)
    kinds = "vision, text" if any(vision) and any(text) else "vision" if any(vision) else "text"
    label_axes(axes, f"tokens a block of {part} sees (keep ratios: {kinds})", "tokens")
    axes.set_xlabel("block")


def _bars(
    axes: Axes, blocks: Sequence[BlockPlan], kept: Sequence[int], totals: Sequence[int]
) -> None:
    places = [block.index for block in blocks]
    axes.bar(places, totals, color="#e5e5e5")
    colour = MODE_COLOURS[f"{blocks[0].part}_parameters"]
    axes.bar(places, kept, color=colour)


def label_axes(axes: Axes, title: str, unit: str) -> None:
    """Set title and unit in the common style of all figures."""
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
    # Next to the bars, which leave no space for it.
    axes.legend(
        handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
