"""Command ``comp-export flops``: count multiply-accumulates and parameters from sizes alone."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comp.commands.options import CommonOptions, common_options
from comp.utils.console import print_json, print_table, say

if TYPE_CHECKING:
    from comp.checkpoints.slim_encoder_shape import SlimShape
    from comp.flops.llava import FlopsReport
    from comp.plan import DropPlan, PruningPlan, Workload

DEFAULT_MODEL = "tiny-llava"
DEFAULT_TEXT_TOKENS = 64


@click.command()
@click.option(
    "--model",
    help="Embedded model, alias, directory or hub id; by default the plan's, or tiny-llava. "
    "Only its config.json is read.",
)
@click.option(
    "--image-tokens",
    type=click.IntRange(min=0),
    help="Image tokens of the prompt; by default the plan's, or those of one image (of a family with "
    "tiles: one tile).",
)
@click.option(
    "--text-tokens",
    type=click.IntRange(min=0),
    help=f"Text tokens of the prompt; by default the plan's, or {DEFAULT_TEXT_TOKENS}.",
)
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="A plan.json, or a run directory: count the pruned model next to the dense one.",
)
@click.option(
    "--drop",
    "drops",
    multiple=True,
    metavar="LAYER:SHARE",
    help="Count as if, after this many language blocks, only this share of the image tokens stayed. "
    "Repeatable.",
)
@click.option(
    "--whole-tower",
    is_flag=True,
    help="Also count vision blocks after the feature layer, which never run.",
)
@common_options
def command(
    model: str | None,
    image_tokens: int | None,
    text_tokens: int | None,
    plan_path: Path | None,
    drops: tuple[str, ...],
    whole_tower: bool,
    options: CommonOptions,
) -> None:
    """Count multiply-accumulates (each counts 1) and parameters of a prompt, by part.

    For a CLIP or a BLIP (clip-b16, clip-l14-336, blip-retrieval, blip-vqa, blip-caption, blip-nlvr, or a
    directory) it counts one request, and what the published figure includes; for a slim one, or with
    --plan, one request next to that of the dense model.
    """
    from comp.checkpoints.llava_shape import ModelShape, config_of
    from comp.checkpoints.slim_encoder_shape import SlimShape
    from comp.flops.llava import llava_macs
    from comp.registry.families import family_of

    plan = None if plan_path is None else _load_plan(plan_path)
    name = model or (plan.model if plan else DEFAULT_MODEL)
    config = config_of(name)
    family = family_of(config.get("model_type"))
    if family is not None and not family.reads_image_tokens:
        llava_only = {
            "--image-tokens": image_tokens is not None,
            "--drop": bool(drops),
            "--whole-tower": whole_tower,
        }
        _refuse([option for option, given in llava_only.items() if given], name)
        encoder = SlimShape.from_config(config, name)
        if plan is not None:
            encoder = encoder.planned(plan)
        if encoder.dense == encoder.slim and not encoder.drops and text_tokens is None:
            _count_compositions(name, encoder, options)
        else:
            on = plan.workload if plan and text_tokens is None else None
            _count_request(name, encoder, on or _request(encoder, text_tokens), options)
        return
    shape = ModelShape.from_config(config, name)
    if image_tokens is None:
        image_tokens = plan.workload.image_tokens if plan else shape.all_image_tokens
    if text_tokens is None:
        text_tokens = plan.workload.text_tokens if plan else DEFAULT_TEXT_TOKENS
    tokens = (image_tokens, text_tokens)
    whole = replace(shape, drops=(), image_selection=None)
    dense = llava_macs(whole, *tokens, whole_tower=whole_tower)
    if plan is not None or drops:
        shape = shape if plan is None else shape.with_plan(plan)
        shape = replace(shape, drops=_parsed_drops(drops, shape.num_layers) or shape.drops)
    report = llava_macs(shape, *tokens, whole_tower=whole_tower)
    compressed = report != dense
    result: dict[str, Any] = {
        "model": name,
        "macs": report.macs,
        "params": report.params,
        "parts": {part: asdict(cost) for part, cost in report.parts.items()},
        "workload": {"image_tokens": image_tokens, "text_tokens": text_tokens},
        "tokens_per_layer": list(report.tokens_per_layer),
        "vision_layers": {"run": shape.vision_used_layers, "total": len(shape.vision.blocks)},
    }
    if compressed:
        result["rate"] = 1 - report.macs / dense.macs
        result["dense"] = {
            "macs": dense.macs,
            "params": dense.params,
            "parts": {part: asdict(cost) for part, cost in dense.parts.items()},
        }
    if options.json:
        print_json(result)
        return
    title = f"{name}: a prompt of {image_tokens} image and {text_tokens} text tokens"
    _print(title, report, dense if compressed else None)
    total = len(shape.vision.blocks)
    unused = total - shape.vision_used_layers
    if unused and not whole_tower:
        say(
            f"Vision blocks after the feature layer, which never run: {unused} of "
            f"{total}; --whole-tower counts them."
        )


def _refuse(given: list[str], name: str) -> None:
    from comp.errors import CompExportError

    if given:
        raise CompExportError(
            f"{given[0]} applies only to a LLaVA, which {name} is not: leave it out"
        )


def _request(shape: "SlimShape", text_tokens: int | None) -> "Workload":
    from comp.errors import CompExportError
    from comp.flops.encoder import usual_request

    longest = shape.dense.text.positions
    if text_tokens is not None and not 1 <= text_tokens <= longest:
        raise CompExportError(
            f"--text-tokens {text_tokens}: the model reads texts of 1 to {longest} tokens"
        )
    return usual_request(shape.dense, text_tokens)


def _count_compositions(name: str, shape: "SlimShape", options: CommonOptions) -> None:
    from comp.flops.encoder import compositions

    counted = compositions(shape.dense)
    if options.json:
        print_json(
            {
                "model": name,
                "family": shape.dense.family,
                "task": shape.dense.task,
                "compositions": [asdict(each) | {"macs": each.macs} for each in counted],
            }
        )
        return
    for each in counted:
        rows = [("all", _giga(each.macs)), *((p, _giga(m)) for p, m in each.parts.items())]
        print_table(f"{name}, {each.name}: {each.of}", ("part", "GMACs"), rows)


def _count_request(name: str, shape: "SlimShape", on: "Workload", options: CommonOptions) -> None:
    """Print the cost of one request by part, for the slim model and the dense one."""
    from comp.flops.token_drops import dropped_macs

    dense = dropped_macs(shape.dense, on, ())
    slim = dropped_macs(shape.slim, on, shape.drops)
    before, after = sum(dense.values()), sum(slim.values())
    if options.json:
        print_json(
            {
                "model": name,
                "family": shape.dense.family,
                "task": shape.dense.task,
                "workload": on.model_dump(),
                "macs": after,
                "parts": slim,
                "rate": 1 - after / before,
                "dense": {"macs": before, "parts": dense},
            }
        )
        return
    rows = [("all", before, after), *((part, dense[part], macs) for part, macs in slim.items())]
    print_table(
        f"{name}: a request of {on.image_tokens} image and {on.text_tokens} text tokens",
        ("part", "GMACs dense", "GMACs", "removed"),
        [(part, _giga(old), _giga(new), f"{1 - new / old:.1%}") for part, old, new in rows],
    )


def _load_plan(path: Path) -> "PruningPlan":
    from comp.plan import PruningPlan
    from comp.runs import open_run

    return open_run(path).load_plan() if path.is_dir() else PruningPlan.load(path)


def _parsed_drops(drops: tuple[str, ...], layers: int) -> "tuple[DropPlan, ...]":
    from comp.errors import CompExportError
    from comp.plan import DropPlan

    by_place = {}
    for text in drops:
        layer, _, share = text.partition(":")
        try:
            place, ratio = int(layer), float(share)
        except ValueError:
            place, ratio = 0, 0.0
        if not (1 <= place < layers and 0 < ratio <= 1):
            raise CompExportError(
                f"--drop {text}: write LAYER:SHARE with a layer from 1 to {layers - 1} and a share "
                "above 0 and at most 1, as in 8:0.5"
            )
        by_place[place] = DropPlan(after_layer=place, vision_keep_ratio=ratio, text_keep_ratio=1.0)
    return tuple(by_place[place] for place in sorted(by_place))


def _print(title: str, report: "FlopsReport", dense: "FlopsReport | None") -> None:
    rows = [("all", report.macs, report.params)]
    rows += [(part, cost.macs, cost.params) for part, cost in report.parts.items()]
    if dense is None:
        table = [(part, _giga(macs), _mega(params)) for part, macs, params in rows]
        print_table(title, ("part", "GMACs", "parameters"), table)
        return
    before = [(dense.macs, dense.params)]
    before += [(cost.macs, cost.params) for cost in dense.parts.values()]
    print_table(
        title,
        ("part", "GMACs dense", "GMACs", "removed", "parameters dense", "parameters"),
        [
            (
                part,
                _giga(old_macs),
                _giga(macs),
                f"{1 - macs / old_macs:.1%}" if old_macs else "",
                _mega(old_params),
                _mega(params),
            )
            for (part, macs, params), (old_macs, old_params) in zip(rows, before, strict=True)
        ],
    )


def _giga(macs: int) -> str:
    return f"{macs / 1e9:,.3f}" if macs < 1e12 else f"{macs / 1e9:,.1f}"


def _mega(params: int) -> str:
    return f"{params / 1e6:,.2f} M"
