"""A bench report for people: Markdown and a figure."""

from pathlib import Path
from typing import Any

from comp.files import writing

DENSE_COLOUR, COMPRESSED_COLOUR = "#8a94a6", "#0f766e"
_ROWS = (
    ("Time to first token", "ttft_ms", "ms", ".1f"),
    ("· preparing", "prepare_ms", "ms", ".1f"),
    ("· vision encoder", "vision_ms", "ms", ".1f"),
    ("· prefill", "prefill_ms", "ms", ".1f"),
    ("Time per output token", "tpot_ms", "ms", ".2f"),
    ("Whole answer", "total_ms", "ms", ".1f"),
    ("Tokens a second", "tokens_per_s", "", ".1f"),
    ("Cold start to first token", "cold_start_ms", "ms", ".0f"),
    ("Peak memory", "peak_rss_mb", "MiB", ".0f"),
    ("Files", "size_mb", "MiB", ".1f"),
)


def bench_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of measure, dense, compressed, gain; medians, with the p90 in parentheses."""
    rows = []
    for label, key, unit, style in _ROWS:
        cells: list[str] = []
        for which in ("dense", "compressed"):
            cell = f"{report[which][key]:{style}} {unit}".strip()
            if key in report[which]["spread"] and key != "tokens_per_s":
                cell += f" ({report[which]['spread'][key]['p90']:{style}})"
            cells.append(cell)
        low, high = report["compressed"][key], report["dense"][key]
        if key == "tokens_per_s":
            low, high = high, low
        rows.append((label, cells[0], cells[1], f"{high / low:.2f}×" if low else "–"))
    return rows


AGAINST_COLUMNS = (
    "backend",
    "TTFT dense",
    "TTFT compressed",
    "gain",
    "TPOT dense",
    "TPOT compressed",
    "gain",
    "verified",
)


def against_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each backend; medians in milliseconds, with the p90 in parentheses."""
    rows = []
    for each in (report, *report["against"]):
        cells = [each["name"]]
        for key in ("ttft", "tpot"):
            for which in ("dense", "compressed"):
                spread = each[which]["spread"][f"{key}_ms"]
                cells.append(f"{spread['median']:.2f} ({spread['p90']:.2f})")
            gain = each["speedup"][key]
            cells.append("–" if gain is None else f"{gain:.2f}×")
        rows.append((*cells, "yes" if each["verified"] else "NO"))
    return rows


def bench_markdown(report: dict[str, Any], title: str) -> str:
    """The report as Markdown."""
    work, machine = report["workload"], report["machine"]
    ratio = report["flops_ratio"]
    lines = [
        f"# {title}",
        "",
        *([] if report["verified"] else ["**Not verified: run `comp-export verify` first.**", ""]),
        "Medians (90th percentiles), dense and compressed measured in turn.",
        "",
        "| | dense | compressed | gain |",
        "|---|--:|--:|--:|",
        *(f"| {' | '.join(row)} |" for row in bench_rows(report)),
        "",
        *_against_lines(report),
        (
            f"- Work: {work['prompt_tokens']} prompt tokens ({work['image_tokens']} of an image), "
            f"{work['new_tokens']} new tokens; {work['repeats']} repeats after "
            f"{work['warmup']} to warm up."
        ),
        *(
            [f"- Multiply-accumulates of a prefill: {100 * ratio:.1f} % of the dense model's."]
            if ratio is not None
            else []
        ),
        (
            f"- {machine['cpu']}, {report['threads']} threads, {machine['system']}, "
            f"{report['backend']} ({report['provider']}); {report['artifact']['precision']}, "
            f"{report['artifact']['flavour']} flavour."
        ),
        f"- {', '.join(f'{name} {number}' for name, number in report['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def _against_lines(report: dict[str, Any]) -> list[str]:
    if not report["against"]:
        return []
    return [
        "Backends in the same turns, milliseconds:",
        "",
        f"| {' | '.join(AGAINST_COLUMNS)} |",
        f"|---|{'--:|' * (len(AGAINST_COLUMNS) - 1)}",
        *(f"| {' | '.join(row)} |" for row in against_rows(report)),
        "",
    ]


def bench_figure(report: dict[str, Any], path: Path, title: str) -> None:
    """Draw the report: time to first token by part, time per token, memory and files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), dpi=150, layout="constrained")
    first, second, third = figure.subplots(1, 3, width_ratios=(1.4, 1, 1.4))
    names = ("dense", "compressed")
    colours = (DENSE_COLOUR, COMPRESSED_COLOUR)
    base = [0.0, 0.0]
    parts = (
        ("prepare_ms", "preparing", 0.35),
        ("vision_ms", "vision", 0.65),
        ("prefill_ms", "prefill", 1),
    )
    for key, label, strength in parts:
        values = [report[name][key] for name in names]
        bars = first.bar(names, values, bottom=base, color=colours, alpha=strength, width=0.6)
        for bar, value, below in zip(bars, values, base, strict=True):
            if value > 0.08 * max(report[name]["ttft_ms"] for name in names):
                ink = "white" if strength == 1 else "black"
                middle = bar.get_x() + bar.get_width() / 2
                first.text(
                    middle,
                    below + value / 2,
                    label,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=ink,
                )
        base = [a + b for a, b in zip(base, values, strict=True)]
    first.set_title("Time to first token, ms", fontsize=10)
    first.bar_label(first.containers[-1], [f"{value:.1f}" for value in base], padding=2, fontsize=9)
    values = [report[name]["tpot_ms"] for name in names]
    second.bar_label(
        second.bar(names, values, color=colours, width=0.6), fmt="%.2f", padding=2, fontsize=9
    )
    second.set_title("Time per output token, ms", fontsize=10)
    places = {"peak_rss_mb": "peak memory", "size_mb": "files"}
    for offset, name, colour in zip((-0.2, 0.2), names, colours, strict=True):
        sizes = [report[name][key] for key in places]
        bars = third.bar(
            [p + offset for p in range(2)], sizes, width=0.38, color=colour, label=name
        )
        third.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    third.set_xticks(range(2), places.values())
    third.set_title("MiB", fontsize=10)
    third.legend(frameon=False, fontsize=8)
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
        axes.tick_params(labelsize=9)
    note = "" if report["verified"] else "  (not verified)"
    figure.suptitle(f"{title}{note}", fontsize=11, fontweight="bold")
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")
