"""Measure how a LLaVA's time and memory grow with images, text, batch and rate, dense and compressed.

    python benchmarks/growth.py --shape llava-s --work DIR --out benchmarks/results/cpu-growth.json

The engine of ``serve``, random weights. Each point is measured in a fresh process, so that its peak
memory is its own; dense and compressed are measured in turn, in two passes over all points. The figure
is written next to the JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from comp.checkpoints.llava_shape import ModelShape
from comp.errors import CompExportError
from comp.plan import PruningPlan, Workload
from comp.utils.console import say
from comp.utils.files import write_text, writing
from comp.utils.machine import usable_cores
from export.tensorrt.limits import Limits
from fresh import in_fresh_process
from plan_shape import find_plan
from random_llava import SHAPES, config_of, prompt_of
from rounds import RoundOptions, picture
from run_files import RunFiles
from serve.bench.cold_start import peak_rss_mb
from speed_report import describe_device, describe_versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES, TEXTS, BATCHES = (1, 2, 4, 8), (64, 256, 1024), (1, 2, 4, 8)
RATES = (0.3, 0.5, 0.62, 0.7)
TEXT, NEW_TOKENS, PASSES = 64, 16, 2
AXES = {
    "images": "images in the prompt",
    "text_tokens": "text tokens",
    "batch": "prompts at a time",
    "rate": "rate (FLOPs removed)",
}
MEASURES = {
    "ttft_ms": "time to first token, ms",
    "tpot_ms": "time per further token, ms",
    "peak_rss_mb": "peak memory, MiB",
}
COLOURS = {"dense": "#8a94a6", "compressed": "#d55e00"}
DPI = 120


@dataclass(frozen=True)
class Point:
    """One request to one model; ``rate`` 0 is the dense model."""

    rate: float
    images: int = 1
    text_tokens: int = TEXT
    batch: int = 1


@dataclass(frozen=True)
class GrowthSettings:
    """Settings of the measurement of a point."""

    threads: int
    new_tokens: int
    warmup: int
    repeats: int
    side: int  # of a picture in pixels
    seed: int


def points_of(rate: float) -> Iterator[tuple[str, Point]]:
    """The points to measure, by axis: dense and compressed along three, all rates along the fourth."""
    for which in (0.0, rate):
        yield from (("images", Point(which, images=count)) for count in IMAGES)
        yield from (("text_tokens", Point(which, text_tokens=count)) for count in TEXTS)
        yield from (("batch", Point(which, batch=count)) for count in BATCHES)
    yield from (("rate", Point(each)) for each in sorted({0.0, rate, *RATES}))


def times_of(artifact: Path, point: Point, settings: GrowthSettings) -> dict[str, Any]:
    """TTFT and TPOT of every repeat, and the peak memory of this process in MiB."""
    from serve.engines.llava import Engine
    from serve.generation.options import GenerationOptions

    engine = Engine.load(artifact, device="cpu", threads=settings.threads, check_hashes=False)
    options = GenerationOptions(max_new_tokens=settings.new_tokens, ignore_eos=True)
    rounds = RoundOptions(
        settings.warmup, settings.repeats, settings.seed, (settings.side, settings.side)
    )
    prompt = prompt_of(point.text_tokens, settings.seed)
    measured: dict[str, Any] = {"ttft_ms": [], "tpot_ms": []}
    for turn in range(settings.warmup + settings.repeats):
        requests = [
            ([picture(rounds, 1000 * turn + 10 * row + n) for n in range(point.images)], prompt)
            for row in range(point.batch)
        ]
        answers = engine.generate_batch(requests, options, batch_size=point.batch)
        if {len(answer.token_ids) for answer in answers} != {settings.new_tokens}:
            raise CompExportError(f"{point}: an answer is not {settings.new_tokens} tokens long")
        if turn >= settings.warmup:
            times = answers[0].timings  # a batch's answers have one clock
            measured["ttft_ms"].append(times.ttft_ms)
            measured["tpot_ms"].append(times.decode_ms / (settings.new_tokens - 1))
    return measured | {"peak_rss_mb": peak_rss_mb()}


def measure(
    artifacts: dict[float, Path], rate: float, settings: GrowthSettings, passes: int
) -> dict[Point, dict[str, Any]]:
    """Measure every point in ``passes`` passes over all of them."""
    points = list(dict.fromkeys(point for _, point in points_of(rate)))
    # Dense and compressed points follow each other, so that a slow spell affects both.
    points.sort(key=lambda point: (point.batch, point.images, point.text_tokens, point.rate))
    runs: dict[Point, list[dict[str, Any]]] = {point: [] for point in points}
    for number in range(passes):
        for point in points:
            say(f"pass {number + 1} of {passes}: {point}")
            runs[point].append(in_fresh_process(times_of, artifacts[point.rate], point, settings))
    return {point: _joined(each) for point, each in runs.items()}


def _joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {"peak_rss_mb": max(run["peak_rss_mb"] for run in runs)}
    for measure in ("ttft_ms", "tpot_ms"):
        values = [value for run in runs for value in run[measure]]
        joined[measure] = {"median": median(values), "min": min(values), "max": max(values)}
    return joined


def figure_of(report: dict[str, Any]) -> "Figure":
    """A column for each axis, a row for each measure; bars from the fastest to the slowest repeat."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(AXES), squeeze=False)
    for column, (axis, label) in enumerate(AXES.items()):
        rows = [row for row in report["points"] if axis in row["axes"]]
        for line, (measure, unit) in enumerate(MEASURES.items()):
            axes: Axes = grid[line][column]
            for name in ("compressed",) if axis == "rate" else ("dense", "compressed"):
                mine = [
                    row for row in rows if axis == "rate" or (row["rate"] > 0) == (name != "dense")
                ]
                _draw(axes, sorted(mine, key=lambda row: row[axis]), axis, measure, name)
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)
            axes.grid(alpha=0.3)
            if line + 1 == len(MEASURES):
                axes.set_xlabel(label)
            if column == 0:
                axes.set_ylabel(unit)
    grid[0][0].legend()
    about = report["about"]
    figure.suptitle(
        f"{about['shape']}, {about['precision']}, {about['threads']} threads of {about['device']['name']}; "
        f"compressed: rate {about['rate']}; one image and {TEXT} text tokens otherwise"
    )
    return figure


def _draw(axes: "Axes", rows: Sequence[dict[str, Any]], axis: str, measure: str, name: str) -> None:
    places = [row[axis] for row in rows]
    values = [row[measure] for row in rows]
    if measure == "peak_rss_mb":
        axes.plot(places, values, "o-", color=COLOURS[name], label=name)
        return
    middle = [each["median"] for each in values]
    spread = [
        [m - each["min"] for m, each in zip(middle, values, strict=True)],
        [each["max"] - m for m, each in zip(middle, values, strict=True)],
    ]
    axes.errorbar(places, middle, spread, fmt="o-", capsize=3, color=COLOURS[name], label=name)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="TTFT, TPOT and memory against the size of a request."
    )
    add = options.add_argument
    add("--shape", choices=SHAPES, default="llava-s")
    add("--rate", type=float, default=0.62, help="of the compressed model")
    add("--precision", choices=("float32", "int8", "int4"), default="int8")
    add("--work", type=Path, default=Path("benchmarks/work"), help="checkpoints and artifacts")
    add(
        "--out",
        type=Path,
        required=True,
        help="JSON file to write, and the figure in the same folder",
    )
    add("--threads", type=int, help="[all usable cores]")
    add("--warmup", type=int, default=1)
    add("--repeats", type=int, default=3, help="repeats in each pass")
    add("--passes", type=int, default=PASSES)
    add("--new-tokens", type=int, default=NEW_TOKENS)
    add("--seed", type=int, default=0)
    return options


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the report and the figure, and return the report.

    Raises:
        CompExportError: an option is out of range.
    """
    for name, least in (("repeats", 1), ("warmup", 0), ("passes", 1), ("new_tokens", 2)):
        if getattr(args, name) < least:
            raise CompExportError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: choose {least} or more"
            )
    shape = ModelShape.from_config(config_of(args.shape))
    on = Workload(image_tokens=shape.image_tokens, text_tokens=TEXT)
    longest = max(IMAGES) * shape.image_tokens + TEXT
    limits = Limits(
        max_batch=max(BATCHES),
        images=max(IMAGES),
        max_prompt=max(longest, *TEXTS),
        max_new_tokens=args.new_tokens,
    )
    plans: dict[float, PruningPlan] = {
        rate: find_plan(shape, rate, on, args.shape, tower=True, seed=args.seed)
        for rate in {args.rate, *RATES}
    }
    first = RunFiles(args.work, args.shape, plans[args.rate], args.precision, limits, args.seed)
    artifacts = {0.0: first.artifact("dense", "onnxruntime")}
    for rate, plan in plans.items():
        artifacts[rate] = replace(first, plan=plan).artifact("compressed", "onnxruntime")
    settings = GrowthSettings(
        args.threads or usable_cores(),
        args.new_tokens,
        args.warmup,
        args.repeats,
        shape.vision.image_size,
        args.seed,
    )
    measured = measure(artifacts, args.rate, settings, args.passes)
    axes: dict[Point, list[str]] = {}
    for axis, point in points_of(args.rate):
        axes.setdefault(point, []).append(axis)
    report = {
        "about": {
            "shape": args.shape,
            "rate": args.rate,
            "precision": args.precision,
            "image_tokens": shape.image_tokens,
            "backend": "onnxruntime",
            **asdict(settings),
            "passes": args.passes,
            "device": describe_device("cpu"),
            "versions": describe_versions(),
        },
        "points": [
            asdict(point) | {"axes": axes[point]} | values for point, values in measured.items()
        ],
    }
    write_text(args.out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    drawn = args.out.with_suffix(".png")
    with writing(drawn) as temporary:
        figure_of(report).savefig(temporary, format="png", dpi=DPI)
    say(f"wrote {args.out} and {drawn}")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parser().parse_args(arguments))
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
