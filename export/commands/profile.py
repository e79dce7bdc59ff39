"""``comp-export profile``: measure the latency of a model's blocks on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comp.commands.options import CommonOptions, F, common_options, threads_option
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, say

if TYPE_CHECKING:
    from comp.latency.table import LatencyTable
    from comp.registry.family import Family
    from export.artifact.manifest import Flavour, Precision
    from export.latency.blocks import Blocks


def _number(name: str, least: int, default: int, help_text: str) -> Callable[[F], F]:
    number = click.IntRange(min=least)
    return click.option(name, type=number, default=default, show_default=True, help=help_text)


@click.command(name="profile")
@click.option(
    "--model", default="tiny-llava", show_default=True, help="Embedded model, directory or hub id."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write [runs/latency/MODEL.json, where `prune --cost latency` looks for it].",
)
@click.option(
    "--flavour",
    type=click.Choice(["onnxruntime", "standard"]),
    default="onnxruntime",
    show_default=True,
    help="Flavour of the graphs, as for `onnx`.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the graphs, as for `onnx`.",
)
@threads_option
@click.option(
    "--text-tokens",
    type=click.IntRange(min=1),
    help="Longest text to measure; longer ones are extrapolated [64, with one image; for CLIP all its "
    "positions].",
)
@_number("--rounds", 1, 3, "Passes over all measurements; the median counts.")
@_number("--warmup", 0, 2, "Untimed runs per round.")
@_number("--repeats", 1, 8, "Timed runs per round.")
@_number(
    "--held-out", 0, 4, "Random plans to predict, export and measure, to find the table's error."
)
@click.option("--force", is_flag=True, help="Replace an existing table.")
@common_options
def command(
    model: str,
    out: Path | None,
    flavour: "Flavour",
    precision: "Precision",
    threads: int | None,
    text_tokens: int | None,
    rounds: int,
    warmup: int,
    repeats: int,
    held_out: int,
    force: bool,
    options: CommonOptions,
) -> None:
    """Measure the latency of a model's blocks in ONNX Runtime, by tokens, heads and channels.

    `prune --cost latency` uses the table. It predicts the time to first token: vision tower and prefill;
    for a CLIP the time of one image embedding and one text embedding. Measure on the machine, and with the
    flavour, precision and threads, that the model will run with; the machine must be idle otherwise. An
    interrupted profile resumes where it stopped.
    """
    from comp.latency.files import default_table
    from comp.registry.code import resolve
    from comp.utils.disk import check_file_place
    from comp.utils.machine import usable_cores
    from comp.utils.progress import working
    from export.graph.builder import Target
    from export.latency.clock import Clock, providers_of
    from export.latency.profile import ProfileRequest, begun, partial_of, profile

    path = out or default_table(model)
    check_file_place(path)
    if path.exists() and not force:
        raise CompExportError(f"{path} exists already: pass --force to replace it, or choose --out")
    checkpoint, family = checkpoint_of(model)
    clock = Clock(warmup, repeats, providers_of(options.device), threads or usable_cores())
    target = Target(flavour, precision)
    blocks: Blocks = resolve(str(family.blocks))(checkpoint, target, text_tokens, options.seed)
    request = ProfileRequest(Path(model).name, blocks, clock, rounds, held_out)
    done = len(begun(request, path))
    if partial_of(path).exists() and not options.json:
        what = f"resuming after {done} measurements" if done else "other settings, starting again"
        say(f"{partial_of(path)}: {what}")
    opening = f"profile: {request.steps} measurements of blocks of {request.model}, {rounds} rounds"
    with working(opening, options.json, tasks=1) as work:
        task = work.task(f"profile of {request.model}", request.steps, done)
        table = profile(request, path, task.at, task.note)
    if options.json:
        print_json({"table": str(path), **_summary(table)})
        return
    _print(path, table)


def checkpoint_of(model: str) -> tuple[Path, "Family"]:
    """Return the directory of a model whose blocks can be measured, and its family.

    Raises:
        CompExportError: there is no such model, or it is of another family.
    """
    from comp.checkpoints.locate import read_config, resolve_model
    from comp.latency.request import measured_families
    from comp.registry.families import family_of

    checkpoint = resolve_model(model)
    kind = read_config(checkpoint).get("model_type")
    family = family_of(kind)
    if family is None or family.name not in measured_families():
        raise CompExportError(
            f"{model}: model_type is {kind!r}: profiling supports {', '.join(measured_families())}; "
            "prune it with --cost flops"
        )
    return checkpoint, family


def _summary(table: "LatencyTable") -> dict[str, object]:
    errors = [abs(each.error) for each in table.held_out if each.name != "dense"]
    return {
        "model": table.model,
        "target": table.target.model_dump(),
        "points": sum(len(row) for s in table.surfaces for plane in s.ms for row in plane),
        "held_out": [{**each.model_dump(), "error": each.error} for each in table.held_out],
        "mean_error": sum(errors) / len(errors) if errors else None,
    }


def _print(path: Path, table: "LatencyTable") -> None:
    target = table.target
    say(
        f"{path}: {table.model} in {target.flavour}, {target.precision}, {target.provider}, "
        f"{target.threads} threads"
    )
    rows = [
        (
            each.name,
            f"{each.image_tokens} + {each.text_tokens}",
            f"{each.predicted_ms:.2f}",
            f"{each.measured_ms:.2f}",
            f"{each.error:+.1%}",
        )
        for each in table.held_out
    ]
    if rows:
        columns = ("model", "image + text tokens", "predicted ms", "measured ms", "error")
        title = f"Time to {table.request.until} of held-out models"
        print_table(title, columns, rows)
    say(f"prune with `comp-export prune --cost latency --latency-table {path}`")
