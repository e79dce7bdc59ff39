"""Options of ``comp-export inspect --figures``, and the numbers of its figures as tables."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.commands.options import CommonOptions
from comp.errors import CompExportError
from comp.utils.console import print_table
from comp.utils.device import torch_device

if TYPE_CHECKING:
    from comp.figures.report import Insight
    from comp.plan import RateOf
    from comp.runs import RunDirectory

SAMPLES = 8  # each takes about 65 forward passes


@dataclass(frozen=True)
class FigureOptions:
    """Values of the options that belong to ``--figures``; ``None`` if not given."""

    samples: int | None
    data: Path | None
    images: Path | None
    follow_links: bool | None
    model: str | None

    def check_unused(self) -> None:
        """Refuse options that are ignored without ``--figures``.

        Raises:
            CompExportError: names the first of them.
        """
        for each in fields(self):
            if getattr(self, each.name) is not None:
                raise CompExportError(
                    f"--{each.name.replace('_', '-')} is for --figures: give that too, or leave it out"
                )


def draw(
    run: "RunDirectory", out: Path | None, figure_options: FigureOptions, options: CommonOptions
) -> "Insight":
    """Measure and write the figures of a run into ``out``, by default into its ``figures/``."""
    from comp.figures.report import InsightOptions, write_insight

    settings = InsightOptions(
        samples=figure_options.samples or SAMPLES,
        model=figure_options.model,
        data=figure_options.data,
        images=figure_options.images,
        follow_links=bool(figure_options.follow_links),
        device=torch_device(options.device),
        seed=options.seed,
        quiet=options.json,
    )
    return write_insight(run, run.figures if out is None else out, settings)


def missing_words(insight: "Insight") -> str:
    """Return the error for figures that were not drawn, with each reason once."""
    figures: dict[str, list[str]] = {}
    for name, reason in insight.missing.items():
        figures.setdefault(reason, []).append(name)
    reasons = (f"{' and '.join(names)}: {reason}" for reason, names in figures.items())
    return f"not every figure could be drawn: {'; '.join(reasons)}"


def print_numbers(insight: "Insight", rate_of: "RateOf") -> None:
    """Print the numbers in the figures; those of the trajectory by stage."""
    numbers = insight.numbers
    _print_trajectory(numbers["trajectory"], rate_of)
    print_table(
        "Shares of the FLOPs removed",
        ("mode", "GMACs", "share", "stages"),
        (
            (
                share["mode"],
                f"{share['macs'] / 1e9:,.4f}",
                f"{share['share']:.1%}",
                ", ".join(str(number) for number, _ in share["stages"]),
            )
            for share in numbers["shares"]
        ),
    )
    if "overlap" in numbers:
        _print_overlap(numbers["overlap"])
    if "rank-stability" in numbers:
        _print_stability(numbers["rank-stability"])


def _print_trajectory(stages: Sequence[dict[str, Any]], rate_of: "RateOf") -> None:
    rows = []
    for stage in stages:
        measured = stage["metric"] is not None
        thresholds = stage["thresholds"]
        rows.append(
            (
                stage["stage"],
                stage["mode"] + (" (explored)" if stage["explored"] else ""),
                f"{1 - stage['rate']:.1%}",
                f"{stage['metric']:.1%}" if measured else "",
                f"{stage['validation_loss']:.3f}",
                f"{thresholds['vision']:.3f}, {thresholds['text']:.3f}",
                f"{stage['cost']:.3f}",
                f"{stage['costs'][stage['mode']]:.3f}",
            )
        )
    left = "time left" if rate_of == "latency" else "FLOPs left"
    columns = ("stage", "mode", left, "metric", "loss", "thresholds (vision, text)")
    print_table("Stages", (*columns, "cost", "running cost"), rows, numbers_from=2)


def _print_overlap(numbers: dict[str, Any]) -> None:
    rows = (
        (
            f"{layer['block']} {layer['sublayer']}",
            _percent(layer["without_cip"]),
            _percent(layer["with_cip"]),
            f"{layer['chance']:.1%}",
        )
        for layer in numbers["layers"]
    )
    print_table(
        f"Overlap of deciding and important tokens, top {numbers['top']:.0%}, {numbers['samples']} "
        "examples (mean ± standard deviation)",
        ("block", "without CIP", "with CIP", "by chance"),
        rows,
    )


def _print_stability(numbers: dict[str, Any]) -> None:
    cases = [(heads, cit) for heads in ("run", "random") for cit in (True, False)]
    names = [f"{heads}, {'with' if cit else 'without'} CIT" for heads, cit in cases]
    for alone, which in (
        (True, "heads of the block alone removed"),
        (False, "heads of all blocks removed"),
    ):
        gone = [of for of in numbers["layers"] if of["masked"] == 1 and of["alone"] == alone]
        rows = []
        for block in dict.fromkeys(layer["block"] for layer in gone):
            by_case = {(of["heads"], of["cit"]): of for of in gone if of["block"] == block}
            rows.append((block, *(_correlation(by_case[case]) for case in cases)))
        print_table(
            f"Correlation of token ranks with the dense model's, {which}, {numbers['samples']} examples "
            f"(mean ± standard deviation; random: {numbers['draws']} draws)",
            ("block", *names),
            rows,
        )


def _percent(spread: dict[str, float]) -> str:
    return f"{spread['mean']:.1%} ± {spread['deviation']:.1%}"


def _correlation(spread: dict[str, float]) -> str:
    return f"{spread['mean']:.3f} ± {spread['deviation']:.3f}"
