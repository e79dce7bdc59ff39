"""Format a bench report as Markdown and as a figure."""

from pathlib import Path
from typing import Any

from comp.utils.files import writing

_NAMES = ("dense", "compressed")
_COLOURS = ("#8a94a6", "#0f766e")
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
_OTHERWISE = {  # labels if nothing is generated
    "Time to first token": "Time to the result",
    "Cold start to first token": "Cold start to the result",
    "· prefill": "· texts",
}
_OF_ANSWERS = ("tpot_ms", "total_ms", "tokens_per_s")  # only if tokens are generated


def bench_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of measure, dense, compressed and gain; medians with the p90 in parentheses."""
    rows = []
    generates = _generates(report)
    for label, key, unit, style in _ROWS:
        if key in _OF_ANSWERS and not generates:
            continue
        cells: list[str] = []
        for which in ("dense", "compressed"):
            cell = f"{report[which][key]:{style}} {unit}".strip()
            if key in report[which]["spread"] and key != "tokens_per_s":
                cell += f" ({report[which]['spread'][key]['p90']:{style}})"
            cells.append(cell)
        low, high = report["compressed"][key], report["dense"][key]
        if key == "tokens_per_s":
            low, high = high, low
        name = label if generates else _OTHERWISE.get(label, label)
        rows.append((name, cells[0], cells[1], f"{high / low:.2f}×" if low else "–"))
    return rows


def _generates(report: dict[str, Any]) -> bool:
    """Whether any tokens were generated after the first."""
    return bool(report["dense"]["tpot_ms"] or report["compressed"]["tpot_ms"])


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
    """One row for each backend; medians in milliseconds with the p90 in parentheses."""
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
    """Format the report as Markdown."""
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
        f"- Work: {_work(report)}; {work['repeats']} repeats after {work['warmup']} warm-up runs.",
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


def _work(report: dict[str, Any]) -> str:
    work = report["workload"]
    if "prompt_tokens" in work:
        return (
            f"{work['prompt_tokens']} prompt tokens ({work['image_tokens']} of images), "
            f"{work['new_tokens']} new tokens"
        )
    new_tokens = f", {work['new_tokens']} new tokens" if work["new_tokens"] else ""
    return f"{work['task']}, images {work['images']}, text tokens {work['text_tokens']}{new_tokens}"


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
    """Draw the report: parts of the time to first token or result, time per output token, MiB."""
    from matplotlib.figure import Figure

    generates = _generates(report)
    figure = Figure(figsize=(9.6 if generates else 7.2, 3.4), dpi=150, layout="constrained")
    widths = (1.4, 1, 1.4) if generates else (1.4, 1.4)
    panels = list(figure.subplots(1, len(widths), width_ratios=widths))
    _draw_parts(panels[0], report, generates)
    if generates:
        values = [report[name]["tpot_ms"] for name in _NAMES]
        bars = panels[1].bar(_NAMES, values, color=_COLOURS, width=0.6)
        panels[1].bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        panels[1].set_title("Time per output token, ms", fontsize=10)
    _draw_sizes(panels[-1], report)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
        axes.tick_params(labelsize=9)
    note = "" if report["verified"] else "  (not verified)"
    figure.suptitle(f"{title}{note}", fontsize=11, fontweight="bold")
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_parts(axes: Any, report: dict[str, Any], generates: bool) -> None:
    base = [0.0, 0.0]
    longest = max(report[name]["ttft_ms"] for name in _NAMES)
    for key, label, strength in (
        ("prepare_ms", "preparing", 0.35),
        ("vision_ms", "vision", 0.65),
        ("prefill_ms", "prefill" if generates else "texts", 1),
    ):
        values = [report[name][key] for name in _NAMES]
        bars = axes.bar(_NAMES, values, bottom=base, color=_COLOURS, alpha=strength, width=0.6)
        ink = "white" if strength == 1 else "black"
        for bar, value, below in zip(bars, values, base, strict=True):
            if value > 0.08 * longest:
                middle = bar.get_x() + bar.get_width() / 2
                axes.text(
                    middle,
                    below + value / 2,
                    label,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=ink,
                )
        base = [a + b for a, b in zip(base, values, strict=True)]
    what = "first token" if generates else "the result"
    axes.set_title(f"Time to {what}, ms", fontsize=10)
    axes.bar_label(axes.containers[-1], [f"{value:.1f}" for value in base], padding=2, fontsize=9)


def _draw_sizes(axes: Any, report: dict[str, Any]) -> None:
    places = {"peak_rss_mb": "peak memory", "size_mb": "files"}
    for offset, name, colour in zip((-0.2, 0.2), _NAMES, _COLOURS, strict=True):
        sizes = [report[name][key] for key in places]
        where = [place + offset for place in range(len(places))]
        bars = axes.bar(where, sizes, width=0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    axes.set_xticks(range(len(places)), places.values())
    axes.set_title("MiB", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
