"""The example runs that come with the package: finished runs of ``prune``, ready to be exported.

They hold the plan, the weights, and a record with all options, so that the same command makes them again.
"""

import json
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from comp.figures.run_figures import save_figures
from comp.pipeline.run_folder import check_free
from comp.runs import RunDirectory, open_run
from comp.utils.files import write_text, writing_directory

COPIED = "copied_from"  # key in run.json: the name of the example, and the version of the package


def example_run(model: str, rate: float, seed: int) -> RunDirectory | None:
    """Return the example run of a model, rate and seed; None if there is none."""
    path = Path(str(files("comp"))) / "example_runs" / f"{model}-{rate:g}"
    if not (path / "run.json").is_file():
        return None
    example = open_run(path)
    return example if example.read_record()["seed"] == seed else None


def is_copied(record: dict[str, Any]) -> bool:
    """Whether a run is a copy of an example run."""
    return COPIED in record


def copy_example(example: RunDirectory, run: RunDirectory, force: bool = False) -> None:
    """Copy an example run to a run directory, the record last.

    Args:
        example: the example run.
        run: where the copy goes: a new or empty directory, or with ``force`` another run, which it replaces.
        force: replace a run.

    Raises:
        CompExportError: the directory is not free, another process works on it, or the disk is full.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with run.locked("copying an example run"):
        check_free(run, force, resume=False)
        run.clear()
        run.forget()
        for source, target in (
            (example.checkpoint, run.checkpoint),
            (example.reports, run.reports),
        ):
            needed = sum(file.stat().st_size for file in source.iterdir())
            with writing_directory(target, needed) as temporary:
                for file in source.iterdir():
                    shutil.copyfile(file, temporary / file.name)
        for source, target in (
            (example.plan_file, run.plan_file),
            (example.stages, run.stages),
        ):
            write_text(target, source.read_text(encoding="utf-8"))
        record = example.read_record() | {
            "run": run.path.name,
            COPIED: f"{example.path.name} of comp-export {version('comp-export')}",
        }
        write_text(run.record, json.dumps(record, indent=1) + "\n")
        save_figures(run)
        run.point_latest_here()
