"""The options of ``comp-export prune``."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from comp.commands.faithful import take_as_defaults
from comp.commands.options import follow_links_option
from comp.registry import METHODS

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model",
        default="tiny-llava",
        show_default=True,
        help="Embedded model, directory or hub id.",
    ),
    click.option(
        "--rate",
        type=float,
        required=True,
        help="Share of the model's FLOPs, or with --cost latency of its time, to remove, in (0, 1).",
    ),
    click.option(
        "--method",
        type=click.Choice([method.name for method in METHODS]),
        default="comp",
        show_default=True,
        help="How to choose what goes: docs/methods.md.",
    ),
    click.option(
        "--faithful",
        is_flag=True,
        is_eager=True,
        callback=take_as_defaults,
        help="The paper's recipe, whatever the defaults are; refuses options that leave it.",
    ),
    click.option(
        "--modes",
        help="What may be pruned: vt, lt (tokens), lp, vp, cp (parameters; cp: cross-attention of BLIP); "
        "short or long names, by comma [all that the model has; of LLaVA vt,lt,lp]. Methods that remove "
        "one kind alone take those of that kind.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run directory [runs/MODEL-RATE; of another seed than 0 runs/MODEL-RATE-seedN].",
    ),
    click.option("--force", is_flag=True, help="Replace an existing run."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run."),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Own data, as docs/your-own-model.md has it: LLaVA-Instruct, VQAv2, Karpathy's JSON, JSONL.",
    ),
    click.option(
        "--images", type=click.Path(path_type=Path), help="Folder that --data's images lie in."
    ),
    follow_links_option,
    click.option("--stages", type=click.IntRange(1), default=8, show_default=True),
    click.option("--steps-per-stage", type=click.IntRange(0), default=12, show_default=True),
    click.option(
        "--recover",
        type=click.Choice(["auto", "full", "lora", "none"]),
        default="auto",
        show_default=True,
        help="Fine-tuning: auto takes LoRA for large models; none prunes by calibration alone.",
    ),
    click.option(
        "--recover-steps",
        type=click.IntRange(0),
        default=300,
        show_default=True,
        help="Besides those of stages x steps-per-stage that the search leaves.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        help="Learning rate while pruning [1e-4 small models, 2e-4 LoRA, 2e-5 large full].",
    ),
    click.option(
        "--recover-lr",
        type=click.FloatRange(0, min_open=True),
        help="Learning rate of recovery [as --lr; where neither is given 5e-4 of small "
        "models, 1e-3 of statements].",
    ),
    click.option(
        "--tower-lr",
        type=click.FloatRange(0),
        help="Learning rate of a LLaVA's image tower, in times of the rest's [0.1].",
    ),
    click.option("--lora-rank", type=click.IntRange(1), default=32, show_default=True),
    click.option(
        "--calibration",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Calibration examples.",
    ),
    click.option(
        "--validation",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Validation examples.",
    ),
    click.option(
        "--align",
        type=click.IntRange(1),
        help="FFN widths are multiples of this [16; 64 for large models].",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--device-map", type=click.Choice(["auto"]), help="Spread a large model over all GPUs."
    ),
    click.option(
        "--stream/--no-stream",
        default=None,
        help="Leave the matrices of a LLaVA's decoder in their files and read each when it is used: for "
        "models that do not fit into memory, with --recover none [of 1e9 parameters or more, on a CPU].",
    ),
    click.option(
        "--distill",
        type=click.Choice(["none", "logits", "features", "both"]),
        help="Learn from the dense model too, in the search and in recovery [both; of BLIP none, of its "
        "statements features].",
    ),
    click.option(
        "--distill-weight",
        type=click.FloatRange(0, min_open=True),
        help="Of that loss, beside 1 of the task's [1; 10 where statements learn features by default].",
    ),
    click.option(
        "--distill-temperature",
        type=click.FloatRange(0, min_open=True),
        default=2.0,
        show_default=True,
        help="That softens logits.",
    ),
    click.option("--exploration", type=float, default=0.2, show_default=True, help="rho of Eq. 9."),
    click.option("--temperature", type=float, default=5.0, show_default=True, help="tau of Eq. 9."),
    click.option(
        "--history", type=float, default=0.4, show_default=True, help="lambda_0 of Eq. 10."
    ),
    click.option(
        "--cost",
        type=click.Choice(["flops", "latency"]),
        default="flops",
        show_default=True,
        help="What pruning removes, the rate is a share of, and a mode's cost is counted by: "
        "multiply-accumulates, or predicted time to the first token (--method comp).",
    ),
    click.option(
        "--latency-table",
        type=click.Path(path_type=Path),
        help="That predicts it, of `profile` [runs/latency/MODEL.json with --cost latency]; with --cost "
        "flops the time is only written down.",
    ),
    click.option(
        "--cost-metric",
        type=click.Choice(["accuracy", "loss"]),
        default="loss",
        show_default=True,
        help="What Eq. 8 compares after a stage: the validation loss, or the metric.",
    ),
    click.option(
        "--cost-examples",
        type=click.IntRange(1),
        help="Validation examples that it is measured on [64 of the loss; all of the metric].",
    ),
    click.option(
        "--race",
        type=click.IntRange(0),
        help="Search by all --modes, by those of parameters and by those of tokens alone (as far as these "
        "reach the rate), compare them after so many steps of recovery, and go on with the best. The steps "
        "of all count: the winner's recovery has fewer (--method comp) [of CLIP 4, unless --modes is given "
        "or steps are few; else 0].",
    ),
    click.option(
        "--no-reconstruction",
        is_flag=True,
        help="After a cut, leave the weights that remain as they are (--method comp; always so under LoRA).",
    ),
    click.option(
        "--train-stages/--no-train-stages",
        default=None,
        help="Train while the masks of a stage fade, --steps-per-stage; else recovery gets these steps "
        "(--method comp) [only where nothing is refitted].",
    ),
    click.option("--no-cip", is_flag=True, help="Importance of parameters without token weights."),
    click.option("--no-cit", is_flag=True, help="Importance of tokens without head masks."),
    click.option("--no-cas", is_flag=True, help="Modes take turns instead of cheapest first."),
    click.option("--no-exploration", is_flag=True, help="Never draw a mode at random."),
    click.option("--no-history", is_flag=True, help="Costs forget earlier stages."),
    click.option(
        "--undo",
        is_flag=True,
        help="Undo a stage that cost far more than another mode is known to, and take that (--method comp; "
        "not stages that train, nor those of a streamed model).",
    ),
)


def prune_options(function: Function) -> Function:
    """Declare them of a command, in the order of ``--help``."""
    return reduce(lambda declared, option: option(declared), reversed(OPTIONS), function)
