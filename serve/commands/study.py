"""``comp-export study``: run a grid of methods, rates and seeds, and report it."""

from contextlib import nullcontext
from pathlib import Path

import click

from comp.commands.options import CommonOptions, common_options
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, say

STUDIES = Path("runs") / "studies"


@click.command(name="study")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The study's folder [runs/studies/ and the name of FILE].",
)
@click.option("--retry", is_flag=True, help="Retry failed cells.")
@click.option("--report-only", is_flag=True, help="Only write the report of finished cells.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Cells to prune in parallel, each on its share of the cores (of the cluster, with --ray); they are "
    "measured one by one.",
)
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Prune on a cluster of Ray whose nodes share the study's folder; measure here.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT|auto",
    help="A cluster that runs already [one on this machine, for as long as the command].",
)
@common_options
def command(
    file: Path,
    out: Path | None,
    retry: bool,
    report_only: bool,
    jobs: int,
    on_ray: bool,
    ray_address: str | None,
    options: CommonOptions,
) -> None:
    """Run the study that FILE (TOML) describes, cell by cell, and report it.

    A cell is one method at one rate with one seed: pruned, exported, evaluated on the test split and
    timed. Running the command again resumes an interrupted study; a failed cell does not stop the
    others. Writes report.md, report.json and figures into the study's folder.
    """
    from comp.utils.cluster import connected
    from serve.study.loading import load_study
    from serve.study.progress import carry_out
    from serve.study.report import COLUMNS, save_report, table_rows
    from serve.study.summary import summarise

    study = load_study(file)
    folder = out or STUDIES / file.stem
    if ray_address is not None and not on_ray:
        raise CompExportError(f"--ray-address {ray_address}: add --ray")
    if not report_only:
        with connected(ray_address) if on_ray else nullcontext():
            carry_out(study, folder, options, retry, jobs, on_ray)
    summary = summarise(study, folder, file.stem)
    save_report(summary, folder)
    if options.json:
        print_json(summary.to_dict())
    else:
        print_table(f"{summary.name}: {summary.metric}", COLUMNS, table_rows(summary), 2)
        say(f"wrote {folder / 'report.md'}, report.json and figures")
    if summary.failed and not report_only:
        first = summary.failed[0]
        raise CompExportError(
            f"{len(summary.failed)} of {summary.cells} cells failed, {first.cell} at {first.step} "
            f"({first.reason}): see {folder / 'report.md'}; --retry tries them again"
        )
