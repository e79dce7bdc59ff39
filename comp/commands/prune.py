"""Command ``comp-export prune``: prune a model from start to end."""

from pathlib import Path
from typing import Any

import click

from comp.commands.model_options import model_options
from comp.commands.options import CommonOptions, common_options
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from comp.pipeline.run_folder import check_free, run_of
from comp.runs import RunDirectory, hold
from comp.utils.console import print_json, print_table, say
from comp.utils.locks import is_first_process

RUN_OPTIONS = (
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run directory [runs/MODEL-RATE; with a seed other than 0 runs/MODEL-RATE-seedN].",
    ),
    click.option("--force", is_flag=True, help="Replace an existing run."),
    click.option("--resume", is_flag=True, help="Continue an interrupted run."),
)


@click.command()
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
        ("FLOPs (MACs)", f"{record['macs']['dense']:,}", f"{record['macs']['compressed']:,}"),
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
