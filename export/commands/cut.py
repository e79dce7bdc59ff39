"""``comp-export cut``: apply a plan to a checkpoint without searching or training."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from comp.commands.options import CommonOptions, common_options
from comp.errors import CompExportError
from comp.utils.console import print_json, say
from comp.utils.progress import working

if TYPE_CHECKING:
    from comp.plan import PruningPlan
    from comp.runs import RunDirectory


@click.command(name="cut")
@click.option("--model", help="Embedded model, directory or hub id [the plan's].")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="plan.json of a run, or one of your own (docs/reference/plan.schema.json).",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run to write.")
@click.option("--force", is_flag=True, help="Replace a run that `cut` wrote there.")
@common_options
def command(
    model: str | None, plan_file: Path, out: Path, force: bool, options: CommonOptions
) -> None:
    """Cut heads and channels out of a checkpoint as a plan says, and write a run like that of `prune`.

    Nothing is searched and nothing is trained: for a plan from elsewhere, or for a checkpoint too large to
    train. For a LLaVA only one tensor at a time is in memory. Continue as after `prune`: onnx, verify,
    eval, bench, run.
    """
    from comp.checkpoints.locate import resolve_model
    from comp.plan import PruningPlan
    from comp.runs import RunDirectory, hold
    from export.weights.cut_run import cut_run, was_begun, was_cut

    plan = PruningPlan.load(plan_file)
    name = model or plan.model
    run = RunDirectory(out.resolve() if out.is_symlink() else out)
    hold(run, "cut")
    if not (run.is_empty or was_begun(run) or (force and was_cut(run))):
        remedy = (
            "--force replaces what `cut` wrote" if was_cut(run) else "it was not written by `cut`"
        )
        raise CompExportError(f"{out} exists already: choose another --out ({remedy})")
    with working(f"cut: {name} by {plan_file} into {out}", options.json) as work:
        record = cut_run(run, name, resolve_model(name), plan, work.task("cutting").at)
    if options.json:
        print_json(record)
    else:
        _print(run, plan)


def _print(run: "RunDirectory", plan: "PruningPlan") -> None:
    say(
        f"{run.path}: {plan.macs / 1e9:.3f} of {plan.macs_dense / 1e9:.3f} GMACs left, nothing was trained"
    )
    say(f"next: comp-export onnx {run.path}, then verify, eval and bench")
