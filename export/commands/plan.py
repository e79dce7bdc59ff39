"""Command ``comp-export plan``: find the rate for a target time."""

from dataclasses import replace
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comp.commands.options import CommonOptions, common_options
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, say

if TYPE_CHECKING:
    from comp.latency.table import LatencyTable
    from export.latency.rate_for_time import Planned


@click.command(name="plan")
@click.option(
    "--model", default="tiny-llava", show_default=True, help="Embedded model, directory or hub id."
)
@click.option(
    "--target-ms",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    help="Time to first token (of a CLIP: of both embeddings), without preparing the image.",
)
@click.option(
    "--latency-table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Written by `profile` on the target machine [runs/latency/MODEL.json].",
)
@click.option(
    "--modes", help="Modes to cut, separated by commas: vt, lt, lp, vp [default: as for prune]."
)
@click.option(
    "--text-tokens",
    type=click.IntRange(min=1),
    help="Text tokens of the prompt, after one image [the longest held-out prompt of the table].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the sketched plan: measure its time with `cut`, `onnx` and `bench` before any training.",
)
@click.option("--force", is_flag=True, help="Replace the file --out.")
@common_options
def command(
    model: str,
    target_ms: float,
    latency_table: Path | None,
    modes: str | None,
    text_tokens: int | None,
    out: Path | None,
    force: bool,
    options: CommonOptions,
) -> None:
    """Find the rate that a model must be pruned by for a target time to first token.

    The time is predicted with the table that `profile` measured on the target, corrected by the mean error
    of its predictions on held-out models; the range comes from those errors. The result is the rate for
    `prune --cost latency`, and a sketched plan that takes this time and cuts all modes in proportion.
    """
    from comp.latency.files import table_for
    from comp.latency.table import LatencyTable
    from comp.plan import Workload
    from comp.registry.code import resolve
    from comp.registry.modes import mode_names
    from export.commands.profile import checkpoint_of
    from export.graph.builder import Target
    from export.latency.blocks import Blocks
    from export.latency.rate_for_time import plan_for

    if out is not None and out.exists() and not force:
        raise CompExportError(
            f"{out} exists already: pass --force to replace it, or choose another"
        )
    checkpoint, family = checkpoint_of(model)
    source = table_for(model, family.name, "latency", latency_table)
    assert source is not None
    table = LatencyTable.load(Path(source.path))
    chosen_modes = family.default_modes if modes is None else mode_names(modes)
    unknown = [mode for mode in chosen_modes if mode not in family.modes]
    if unknown:
        raise CompExportError(
            f"--modes {unknown[0]}: a {family.name} has {', '.join(family.modes)}"
        )
    longest = max((each.text_tokens for each in table.held_out), default=None)
    target = Target(table.target.flavour, table.target.precision)  # type: ignore[arg-type]
    blocks: Blocks = resolve(str(family.blocks))(
        checkpoint, target, text_tokens or longest, options.seed
    )
    table.check_fits(family.name, blocks.dense_blocks(), source.path)
    on = Workload(image_tokens=blocks.image_tokens, text_tokens=blocks.text_tokens)
    planned = plan_for(blocks, table, chosen_modes, on, _align(checkpoint), target_ms)
    planned = replace(planned, plan=planned.plan.model_copy(update={"model": model}))
    if out is not None:
        planned.plan.save(out)
    # Rounded up, so that the time is met; modes only if given, because naming them disables the race.
    rate = ceil(planned.rate * 1e4) / 1e4
    named = "" if modes is None else f"--modes {','.join(_short(mode) for mode in chosen_modes)} "
    command = (
        f"comp-export prune --model {model} --cost latency --rate {rate:.4f} {named}"
        f"--latency-table {source.path}"
    )
    if options.json:
        print_json(_record(planned, target_ms, table, command, out))
        return
    _print(planned, target_ms, table, command, out)


def _align(checkpoint: Path) -> int:
    """Return the multiple that `prune` rounds widths to by default."""
    from comp.checkpoints.model_size import parameters_of, size_of
    from comp.pipeline.defaults import ALIGN

    return ALIGN[size_of(parameters_of(checkpoint))]


def _short(mode: str) -> str:
    """Return the short name of a mode, as `prune` takes it."""
    from comp.registry.modes import SHORT_MODES

    return next(short for short, long in SHORT_MODES.items() if long == mode)


def _record(
    planned: "Planned", target_ms: float, table: "LatencyTable", command: str, out: Path | None
) -> dict[str, object]:
    plan = planned.plan
    return {
        "model": plan.model,
        "target_ms": target_ms,
        "target": table.target.model_dump(),
        "workload": planned.on.model_dump(),
        "dense_predicted_ms": planned.dense_ms,
        "predicted_ms": planned.plan_ms,
        "expected_ms": planned.expected_ms,
        "range_ms": list(planned.range_ms),
        "table_errors": {"mean": planned.mean_error, "range": list(planned.errors)},
        "rate": planned.rate,
        "flops_rate": plan.rate,
        "command": command,
        "plan": None if out is None else str(out),
    }


def _print(
    planned: "Planned", target_ms: float, table: "LatencyTable", command: str, out: Path | None
) -> None:
    plan, on, target = planned.plan, planned.on, table.target
    low, high = planned.range_ms
    rows = [
        ("target", f"{target_ms:.2f} ms"),
        ("dense, expected", f"{planned.dense_ms / (1 + planned.mean_error):.2f} ms"),
        ("compressed, expected", f"{planned.expected_ms:.2f} ms ({low:.2f} to {high:.2f})"),
        ("share of time to remove", f"{planned.rate:.1%}"),
        ("share of FLOPs removed", f"{plan.rate:.1%}"),
    ]
    for part, word in (("vision", "image part"), ("language", "language part")):
        cut = plan.part(part)  # type: ignore[arg-type]
        heads = sum(len(block.kept_key_value_heads) for block in cut)
        channels = sum(len(block.kept_channels) for block in cut)
        whole = (
            sum(block.num_key_value_heads for block in cut),
            sum(b.intermediate_size for b in cut),
        )
        if cut:
            left = f"{heads} of {whole[0]} heads, {channels} of {whole[1]} channels"
            rows.append((f"{word} (sketch)", left))
    for name, place in (("image", 0), ("text", 1)):
        share = prod(drop.shares[place] for drop in plan.drops)
        rows.append((f"{name} tokens left at the end", f"{share:.1%}"))
    print_table(
        f"{plan.model} on {target.provider}, {target.precision}, {target.threads} threads: "
        f"{on.image_tokens} image and {on.text_tokens} text tokens",
        ("what", "value"),
        rows,
    )
    if not table.held_out:
        say(
            "the table was not checked on held-out models (profile --held-out 0): its error is unknown"
        )
    say(f"next: {command}")
    if out is not None:
        say(
            f"or first measure the sketch: comp-export cut --model {plan.model} --plan {out} "
            "--out RUN, then onnx and bench"
        )
