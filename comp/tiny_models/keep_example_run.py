"""Keep a finished and evaluated run as the example run of the package (``comp.pipeline.example_run``).

The commands that make it::

    comp-export prune --model tiny-llava --rate 0.62 --recover-steps 800
    comp-export onnx
    comp-export verify
    comp-export eval --limit 600
    python -m comp.tiny_models.keep_example_run runs/latest
"""

import json
import shutil
from pathlib import Path

import click

from comp.errors import CompExportError
from comp.runs import open_run
from comp.utils.files import write_text, writing_directory
from comp.utils.json_files import read_object

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
    evaluated = read_object(report, "run `comp-export eval` again")
    if not evaluated.get("verified"):
        raise CompExportError(f"{report} is of artifacts that were not verified: verify, then eval")
    record = run.read_record()
    name = f"{record['model']}-{record['rate_asked']:g}"
    target = EXAMPLES / name
    with writing_directory(target) as temporary:
        for file in (run.plan_file, run.stages):
            shutil.copyfile(file, temporary / file.name)
        write_text(temporary / run.record.name, json.dumps(record | {"run": name}, indent=1) + "\n")
        (temporary / run.checkpoint.name).mkdir()
        for file in run.checkpoint.iterdir():
            shutil.copyfile(file, temporary / run.checkpoint.name / file.name)
        kept = json.dumps(evaluated | {"run": f"runs/{name}"}, indent=1) + "\n"
        write_text(temporary / run.reports.name / report.name, kept)
        if (target / README).is_file():
            shutil.copyfile(target / README, temporary / README)
    print(f"kept {run.path} as {name}")


if __name__ == "__main__":
    main()
