"""The run directory: where every stage leaves what the next one reads."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.files import disk_errors, write_text
from comp.plan import PruningPlan
from comp.versioned import read_versioned

RUN_VERSION = 1
LATEST = "latest"


@dataclass(frozen=True)
class RunDirectory:
    """Names inside ``runs/<name>/`` (``docs/formats.md`` describes them)."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def stages(self) -> Path:
        return self.path / "stages.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def onnx(self) -> Path:
        return self.path / "onnx"

    @property
    def onnx_dense(self) -> Path:
        return self.path / "onnx-dense"

    @property
    def reports(self) -> Path:
        return self.path / "reports"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def state(self) -> Path:
        """What ``prune --resume`` goes on from; there only while pruning."""
        return self.path / ".state"

    @property
    def request(self) -> Path:
        """What the unfinished run was asked for."""
        return self.state / "request.json"

    @property
    def is_interrupted(self) -> bool:
        """Whether a run is not finished."""
        return self.state.is_dir()

    def forget_refused(self) -> None:
        """Remove what a run was asked for, if it left nothing else: then there is nothing to resume."""
        if not any(each.is_file() and each != self.request for each in self.state.rglob("*")):
            shutil.rmtree(self.state, ignore_errors=True)

    def load_plan(self) -> PruningPlan:
        return PruningPlan.load(self.plan_file)

    def read_record(self) -> dict[str, Any]:
        """``run.json``: what was asked, with ``model`` (name) and ``model_path`` (directory)."""
        return json.loads(self.record.read_text())

    def write_report(self, name: str, report: dict[str, Any]) -> Path:
        """Write ``reports/<name>.json``."""
        path = self.reports / f"{name}.json"
        write_text(path, json.dumps(report, indent=1) + "\n")
        return path

    def point_latest_here(self) -> None:
        """Make the link ``runs/latest`` lead to this run."""
        link = self.path.parent / LATEST
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        with disk_errors(link):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name, target_is_directory=True)
            temporary.replace(link)


def open_run(path: Path) -> RunDirectory:
    """Open a run; ``runs/latest`` follows to the newest one.

    Raises:
        CompExportError: when there is no run there, or it is of another version.
    """
    target = path.resolve()
    run = RunDirectory(target)
    absent = f"no run at {path}", "make one with `comp-export prune` or `quickstart`"
    again = "make it again with `comp-export prune --force`"
    read_versioned(run.record, "a run", RUN_VERSION, absent, again)
    return run


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names such as ``search.stages``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(dotted(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
