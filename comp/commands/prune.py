"""Command ``comp-export prune``: prune a model from start to end."""

from pathlib import Path
from typing import Any

import click

from comp.commands.model_options import model_options
from comp.commands.options import CommonOptions, common_options
from comp.commands.sections import GroupedCommand, GroupedOption
from comp.errors import CompExportError
from comp.pipeline.options import GROUPS, REMOVE, PruneOptions
from comp.pipeline.run_folder import check_free, run_of
from comp.runs import RunDirectory, hold
from comp.utils.console import print_json, print_table, say
from comp.utils.locks import is_first_process
from comp.utils.option_fields import OptionGroup

RUN = OptionGroup("Run directory")
SECTIONS = (REMOVE, RUN, *(group for group in GROUPS if group != REMOVE))
RUN_OPTIONS = (
    click.option(
        "--out",
        cls=GroupedOption,
        group=RUN,
        type=click.Path(path_type=Path),
        help="Run directory [runs/MODEL-RATE; with a seed other than 0 runs/MODEL-RATE-seedN].",
    ),
    click.option(
        "--force", cls=GroupedOption, group=RUN, is_flag=True, help="Replace an existing run."
    ),
    click.option(
        "--resume", cls=GroupedOption, group=RUN, is_flag=True, help="Continue an interrupted run."
    ),
)
EXAMPLES = (
    ("prune --rate 0.62", "Remove 62 % of the FLOPs of the embedded LLaVA"),
    (
        "prune --model tiny-clip --rate 0.5 --modes vp,lp",
        "Remove heads and channels of a CLIP, no tokens",
    ),
    (
        "prune --model llava-7b --rate 0.5 --data train.json --images coco",
        "Prune LLaVA-1.5-7B, trained on your own data",
    ),
    (
        "prune --rate 0.62 --method fastv --recover none --out runs/fastv",
        "Drop image tokens by FastV, without training",
    ),
    ("prune --rate 0.62 --resume", "Continue after an interrupt"),
)


@click.command(cls=GroupedCommand, groups=SECTIONS, examples=EXAMPLES)
@model_options(PruneOptions, without={"seed"}, before={"data": RUN_OPTIONS})
@common_options
def command(
    given: dict[str, Any], out: Path | None, force: bool, resume: bool, options: CommonOptions
) -> None:
    """Prune a model: search, cut, recover, and write a run directory.

    --resume continues an interrupted run and gives the same plan; at most one stage is lost.
    """
    chosen = PruneOptions.of(**given, seed=options.seed)
    run = run_of(out, chosen.model, chosen.rate, chosen.seed)
    if force and resume:
        raise CompExportError("--force starts again and --resume continues: give one of them")
    if is_first_process():  # one of several processes checks for all
        hold(run, "prune")
        check_free(run, force, resume)
    from comp.pipeline.prune import prune_model
    from comp.utils.compute import Compute

    compute = Compute(options.device, chosen.dtype)
    record = prune_model(chosen, run, compute, options.json, resume)
    if compute.is_main:
        _print_record(run, record, options.json)


def _print_record(run: RunDirectory, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        keys = ["rate", "rate_asked", "rate_of", "macs", "metric", "seconds", "times_fine_tuning"]
        keys += ["milliseconds"] if "milliseconds" in record else []
        print_json({"run": str(run.path), **{key: record[key] for key in keys}})
        return
    metric = record["metric"]
    rows = [
        ("GMACs", *(f"{record['macs'][which] / 1e9:,.3f}" for which in ("dense", "compressed"))),
        (metric["name"], f"{metric['dense']:.1%}", f"{metric['compressed']:.1%}"),
    ]
    if "milliseconds" in record:
        times = record["milliseconds"]
        dense, left = f"{times['dense']:.2f} ms", f"{times['compressed']:.2f} ms"
        rows.insert(1, ("predicted time to first token", dense, left))
    of = {"flops": "FLOPs", "latency": "predicted time"}[record["rate_of"]]
    title = f"{run.path}: rate {record['rate']:.3f} of {of}"
    print_table(title, ("", "dense", "compressed"), rows)
    say("next: comp-export onnx, then verify, eval and bench")
