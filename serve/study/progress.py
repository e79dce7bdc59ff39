"""Run all cells of a study and report the progress."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from comp.commands.options import CommonOptions
from comp.utils.machine import usable_cores
from comp.utils.progress import Task, duration, working
from serve.study.cells import Runner, Steps
from serve.study.folder import CellRecord, StudyFolder
from serve.study.grid import Cell, cells_of, dense_settings_of, settings_of
from serve.study.processes import ended_by_signals
from serve.study.schema import Study
from serve.study.side_by_side import side_by_side

AHEAD = 4  # cells per job that are prepared before they are measured


def carry_out(
    study: Study,
    path: Path,
    options: CommonOptions,
    retry: bool,
    jobs: int = 1,
    on_ray: bool = False,
) -> None:
    """Run every cell that has no record yet.

    Args:
        study: the study file.
        path: the study's folder; finished cells in it are left as they are.
        options: device, seed of timed requests, verbosity.
        retry: run failed cells again.
        jobs: number of cells pruned and exported in parallel, each with its share of the cores. They are
            measured one after another, alone.
        on_ray: prune and export on the connected cluster of Ray, whose nodes share the folder; measure here.

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
            _tidy(study, folder, cell, record)  # it may have been killed before this
        left = [cell for cell in cells if cell.name not in over]
        if not left:
            return
        opening = f"study: {len(left)} of {len(cells)} cells to run: prune, export, measure"
        with working(opening, options.json) as shown:
            task = shown.task("study", len(left))
            notes = [
                _Note(task, f"{number}/{len(cells)} {cell.name}", len(cells) - number, jobs, over)
                for number, cell in enumerate(left, start=len(over) + 1)
            ]
            works = [
                _CellWork(Runner(study, folder, options, lock, note), cell, note)
                for cell, note in zip(left, notes, strict=True)
            ]
            prepared = _on_ray(jobs, options) if on_ray else partial(_prepared, jobs=jobs)
            for group in _groups(works, jobs, on_ray):
                for work, steps in zip(group, prepared(group), strict=True):
                    record = work.runner.run(work.cell, steps)
                    over[work.cell.name] = record
                    _tidy(study, folder, work.cell, record)
                    task.at(len(left) - work.note.remaining)
                    work.note(outcome(record), over=True)


@dataclass(frozen=True)
class _Note:
    """Reports the state of a cell, and the time left for it and the ``remaining`` cells after it."""

    task: Task
    cell: str
    remaining: int
    jobs: int
    over: Mapping[str, CellRecord]

    def __call__(self, what: str, over: bool = False) -> None:
        to_do = self.remaining + (not over)
        done = [record.own_seconds for record in self.over.values() if record.result is not None]
        known = done and to_do
        left = f" (about {duration(mean(done) * to_do / self.jobs)} left)" if known else ""
        self.task.note(f"{self.cell}: {what}{left}")


@dataclass(frozen=True)
class _CellWork:
    runner: Runner
    cell: Cell
    note: _Note


def _groups(works: Sequence[_CellWork], jobs: int, on_ray: bool) -> Iterator[Sequence[_CellWork]]:
    """Groups of cells that are all prepared before any of them is measured."""
    size = AHEAD * jobs if jobs > 1 or on_ray else 1
    return (works[begin : begin + size] for begin in range(0, len(works), size))


def _prepared(group: Sequence[_CellWork], jobs: int) -> Sequence[Steps | None]:
    """Prepare cells, in parallel if there are several jobs."""
    if jobs == 1:
        return [None] * len(group)
    threads = max(1, usable_cores() // jobs)
    return side_by_side([partial(work.runner.prepare, work.cell, threads) for work in group], jobs)


def _on_ray(
    jobs: int, options: CommonOptions
) -> Callable[[Sequence[_CellWork]], Sequence[Steps | None]]:
    """Return what prepares cells on the connected cluster."""
    from serve.study.on_ray import prepare_on_ray, share_of

    share = share_of(jobs, options.device)
    return lambda group: prepare_on_ray([(work.runner, work.cell) for work in group], share)


def outcome(record: CellRecord) -> str:
    """The outcome of a cell in a few words."""
    if record.result is None:
        return f"failed: {record.reason}"
    accuracy = record.result.accuracy
    value = f"{accuracy.value:.1%}" if accuracy.share else f"{accuracy.value:.3f}"
    return f"{value} in {duration(record.own_seconds)}"


def _tidy(study: Study, folder: StudyFolder, cell: Cell, record: CellRecord) -> None:
    if record.result is not None and not study.keep_runs:
        folder.tidy(cell)
