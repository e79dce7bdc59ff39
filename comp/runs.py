"""The run directory: files that each step of a run writes for the next ones."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.utils.arguments import path_of
from comp.utils.disk import disk_errors
from comp.utils.files import discard, remove, sweep, write_text, writing_directory
from comp.utils.json_files import read_object
from comp.utils.locks import LOCK, locked, process_lives
from comp.utils.versioned_json import read_versioned

RUN_VERSION = 1
LATEST = "latest"
MADE = "made_by"  # key in run.json and in requests: the command, if not `prune`
AGAIN = "make it again with `comp-export prune --force`"
ANY = ".+?"
# Names that commands write into a run; ``sweep`` recognises leftovers of killed commands by them.
WRITTEN = (
    r"(onnx|tensorrt)[a-z0-9-]*|checkpoint|reports|figures|\.state|timing\.cache|[a-z]+\.jsonl?"
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside ``runs/<name>/`` (see ``docs/reference/formats.md``)."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def split(self) -> Path:
        """Which of the run's own data trained, validated and tests it (``comp.data.split``)."""
        return self.path / "split.json"

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
        """State that ``prune --resume`` continues from; exists only while pruning."""
        return self.path / ".state"

    @property
    def request(self) -> Path:
        """Request of the unfinished run."""
        return self.state / "request.json"

    @property
    def is_interrupted(self) -> bool:
        """Whether the run is not finished."""
        return self.request.is_file()

    @property
    def is_empty(self) -> bool:
        """Whether the directory holds nothing but the lock and the state of a starting run."""
        own = {LOCK, self.state.name}
        return not self.is_interrupted and all(each.name in own for each in self.path.iterdir())

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """Lock the run, and remove temporary files of killed processes.

        Args:
            doing: the command, for the error of other processes.

        Raises:
            CompExportError: another process holds the lock (names it and its host).
        """
        with locked(self.path, doing):
            sweep(self.path, WRITTEN)
            sweep(self.reports, ANY)
            sweep(self.state, ANY)
            yield

    def begin(self, request: dict[str, Any]) -> None:
        """Create ``.state/`` with the request atomically, replacing that of an earlier run."""
        discard(self.state)
        with writing_directory(self.state) as temporary:
            write_text(temporary / self.request.name, json.dumps(request, indent=1))

    def forget_refused(self) -> None:
        """Remove the state if it holds only the request: then there is nothing to resume."""
        if not any(each.is_file() and each != self.request for each in self.state.rglob("*")):
            self.forget()

    def clear(self) -> None:
        """Remove the files of an earlier run; its record first, so that it does not count as finished."""
        self.record.unlink(missing_ok=True)
        self.split.unlink(missing_ok=True)  # a run on EmojiScenes has none
        with disk_errors(self.path):
            for old in self.path.iterdir():
                if old.is_dir() and old != self.state:  # also a link to one
                    remove(old)

    def forget(self) -> None:
        """Remove the state that ``prune --resume`` continues from."""
        discard(self.state)

    def load_plan(self) -> PruningPlan:
        return PruningPlan.load(self.plan_file)

    def read_record(self) -> dict[str, Any]:
        """Return ``run.json``: the options, with ``model`` (name) and ``model_path`` (directory)."""
        return read_object(self.record, AGAIN)

    def write_report(self, name: str, report: dict[str, Any]) -> Path:
        """Write ``reports/<name>.json``."""
        path = self.reports / f"{name}.json"
        write_text(path, json.dumps(report, indent=1) + "\n")
        return path

    def point_latest_here(self) -> None:
        """Point the link ``runs/latest`` to this run."""
        link = self.path.parent / LATEST
        with _linking(link, self.path.name) as temporary:
            temporary.replace(link)

    def check_latest(self) -> None:
        """Refuse a place where ``point_latest_here`` cannot create its link.

        Raises:
            CompExportError: the run or another file has that name, or links cannot be created.
        """
        link = self.path.parent / LATEST
        if self.path.name == LATEST:
            raise CompExportError(
                f"{self.path}: {LATEST!r} is the link to the newest run: choose another name with --out"
            )
        if link.exists() and not link.is_symlink():
            what = "directory" if link.is_dir() else "file"
            raise CompExportError(
                f"{link} is a {what}, and `prune` makes the link to the newest run there: move it away, or "
                "choose another place with --out"
            )
        with _linking(link, self.path.name):
            pass


def open_run(path: Path | str) -> RunDirectory:
    """Open a run; ``runs/latest`` is resolved to the newest one.

    Raises:
        CompExportError: there is no run, or it has another version.
    """
    target = path_of("run", path).resolve()
    run = RunDirectory(target)
    make = "make one with `comp-export prune` or `quickstart`"
    absent = f"no run at {path}", make
    if target.is_dir() and not os.path.lexists(run.record):
        if run.is_interrupted:
            raise CompExportError(
                f"the run {path} is not finished: {run.record.name} is missing; continue it with `--resume`"
            )
        raise CompExportError(f"{path} is no run: {run.record.name} is missing; {make}")
    read_versioned(run.record, "a run", RUN_VERSION, absent, AGAIN)
    return run


def run_at(run: RunDirectory | Path | str) -> RunDirectory:
    """Return a run that is given as such, or by its path (``open_run``)."""
    return run if isinstance(run, RunDirectory) else open_run(run)


@contextmanager
def _linking(link: Path, target: str) -> Iterator[Path]:
    """Yield a new link with a hidden name in the folder of ``link``."""
    with disk_errors(link):
        for left in link.parent.glob(f".{LATEST}.*"):
            if not process_lives(left.name.rpartition(".")[2]):
                left.unlink(missing_ok=True)
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def hold(run: RunDirectory, doing: str) -> None:
    """Lock a run until the current command ends (``RunDirectory.locked``)."""
    click.get_current_context().with_resource(run.locked(doing))


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, as ``search.stages``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(dotted(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
