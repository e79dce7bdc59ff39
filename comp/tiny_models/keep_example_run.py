"""Keep a finished and evaluated run as the example run of the package (``comp.pipeline.example_run``).

The commands that make it::

    comp-export prune --model tiny-llava --rate 0.62 --recover-steps 800
    comp-export onnx
    comp-export verify
    comp-export eval --limit 600
    python -m comp.tiny_models.keep_example_run runs/latest
"""

import shutil
from pathlib import Path

import click

from comp.errors import CompExportError
from comp.runs import open_run
from comp.utils.files import writing_directory

EXAMPLES = Path(__file__).parents[1] / "example_runs"
README = "README.md"  # written by hand


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
def main(path: Path) -> None:
    """Copy the plan, the weights, the record and the evaluation of RUN into the package."""
    run = open_run(path)
    report = run.reports / "eval.json"
    if not report.is_file():
        raise CompExportError(f"{run.path} has no {report.name}: run `comp-export eval` first")
    target = EXAMPLES / run.path.name
    with writing_directory(target) as temporary:
        for file in (run.record, run.plan_file, run.stages):
            shutil.copyfile(file, temporary / file.name)
        shutil.copytree(run.checkpoint, temporary / run.checkpoint.name)
        (temporary / run.reports.name).mkdir()
        shutil.copyfile(report, temporary / run.reports.name / report.name)
        if (target / README).is_file():
            shutil.copyfile(target / README, temporary / README)
    print(f"kept {run.path} as {target.name}")


if __name__ == "__main__":
    main()
