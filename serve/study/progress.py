"""Carrying out all cells of a study, saying how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from comp.options import CommonOptions
from comp.progress import Progress, Task
from serve.study.cells import Runner
from serve.study.folder import CellRecord, StudyFolder
from serve.study.grid import Cell, cells_of, dense_settings_of, settings_of
from serve.study.processes import ended_by_signals
from serve.study.schema import Study


def carry_out(study: Study, path: Path, options: CommonOptions, retry: bool) -> None:
    """Carry out every cell that is not over, one after another.

    Args:
        study: what to do.
        path: the study's folder; cells that are over in it are left as they are.
        options: the device, the seed of what is timed, whether to be quiet.
        retry: carry out those again that failed.

    Raises:
        CompExportError: the folder was made with other settings, or another study runs in it.
    """
    folder = StudyFolder(path)
    cells = cells_of(study)
    with folder.locked() as lock, ended_by_signals():
        folder.read_dense(dense_settings_of(study))  # refuses other settings before a cell is begun
        over: dict[str, CellRecord] = {}
        for cell in cells:
            record = folder.read_cell(cell, settings_of(study, cell))
            if record is None or (retry and record.result is None):
                continue
            over[cell.name] = record
            _tidy(study, folder, cell, record)  # a kill may have come before it
        left = [cell for cell in cells if cell.name not in over]
        if not left:
            return
        with Progress(options.json).task("study", len(left)) as task:
            for number, cell in enumerate(left):
                say = _Said(task, f"{len(over) + 1}/{len(cells)} {cell.name}", over)
                task.at(number)
                note = partial(say, len(left) - number)
                record = Runner(study, folder, options, lock, note).run(cell)
                over[cell.name] = record
                _tidy(study, folder, cell, record)
                say(len(left) - number - 1, outcome(record))


@dataclass(frozen=True)
class _Said:
    """Says what is done in a cell, and how long the rest will take."""

    task: Task
    cell: str
    over: Mapping[str, CellRecord]

    def __call__(self, cells_left: int, what: str) -> None:
        done = [record.own_seconds for record in self.over.values() if record.result is not None]
        known = done and cells_left
        left = f" (about {duration(mean(done) * cells_left)} left)" if known else ""
        self.task.note(f"{self.cell}: {what}{left}")


def outcome(record: CellRecord) -> str:
    """What came of a cell, in a few words."""
    if record.result is None:
        return f"failed: {record.reason}"
    accuracy = record.result.accuracy
    value = f"{accuracy.value:.1%}" if accuracy.share else f"{accuracy.value:.3f}"
    return f"{value} in {duration(record.own_seconds)}"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2 h 41 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _tidy(study: Study, folder: StudyFolder, cell: Cell, record: CellRecord) -> None:
    if record.result is not None and not study.keep_runs:
        folder.tidy(cell)
