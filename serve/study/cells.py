"""Run a cell: prune, export, measure, and write its record."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp.commands.model_options import words_of
from comp.commands.options import CommonOptions
from comp.data.loading import has_splits
from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.runs import RunDirectory
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions
from serve.study.folder import Accuracy, CellRecord, DenseRecord, Latency, Result, Step, StudyFolder
from serve.study.grid import Cell, dense_settings_of, prune_options_of, settings_of
from serve.study.measuring import MeasureRequest
from serve.study.processes import StepError, run_process
from serve.study.schema import Study, prune_options


@dataclass(frozen=True)
class Runner:
    """Runs cells of a study in its folder.

    Attributes:
        lock: an open file that keeps other studies out of the folder; None on a cluster's worker.
        note: called with a message about the step that runs.
    """

    study: Study
    folder: StudyFolder
    options: CommonOptions
    lock: int | None
    note: Callable[[str], None]

    def prepare(self, cell: Cell, threads: int) -> "Steps":
        """Prune and export a cell, its first steps; ``run`` reports failures."""
        steps = Steps(self, cell, threads)
        with steps.failing():
            steps.made()
        return steps

    def run(self, cell: Cell, prepared: "Steps | None" = None) -> CellRecord:
        """Run a cell, resuming an interrupted one, and write its record."""
        steps = prepared or Steps(self, cell)
        result: Result | None = None
        if steps.failed is None:
            with steps.failing():
                result = steps.all()
        record = CellRecord(
            cell=cell.name,
            settings=settings_of(self.study, cell),
            result=result,
            seconds=steps.seconds,
            machine=describe_machine(),
            versions=self._versions(cell),
            **(steps.failed or {}),
        )
        self.folder.write(self.folder.cell_file(cell), record)
        return record

    def _versions(self, cell: Cell) -> dict[str, str]:
        """Versions of the packages that pruned, as far as the run got, and that measure."""
        run = self.folder.run(cell)
        pruned = run.read_record()["versions"] if run.record.is_file() else {}
        return {**pruned, **describe_versions()}


@dataclass
class Steps:
    """The steps of one cell.

    Attributes:
        threads: for pruning and exporting; by default no limit.
        seconds: time of each step taken, also of a failed one.
        failed: the failed step, and why.
    """

    runner: Runner
    cell: Cell
    threads: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, Any] | None = None
    _now: Step = "prune"

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep an error for the record."""
        try:
            yield
        except CompExportError as error:
            self.failed = {"step": self._now, "reason": str(error)}
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # damaged files of a run
            self.failed = {"step": self._now, "reason": f"{type(error).__name__}: {error}"}

    def made(self) -> PruningPlan:
        """Prune and export."""
        run = self.runner.folder.run(self.cell)
        with self._step("prune"):
            plan = self._prune()
        if not (run.onnx / "manifest.json").is_file():
            with self._step("onnx"):
                self._process(_verb("onnx", str(run.path), "--no-dense", "--force"))
        return plan

    def all(self) -> Result:
        folder, run = self.runner.folder, self.runner.folder.run(self.cell)
        plan = self.made()
        self.threads = None  # measurements have the whole machine
        if not _measured_dense(self.runner):
            with self._step("dense"):
                self._dense(plan)
        with self._step("measure"):
            measured = self._measure(run.onnx, dense=str(folder.dense_artifact))
        if (
            not run.onnx_dense.is_symlink()
        ):  # a kept run is complete: eval, bench and demo accept it
            with run.locked("study"):
                run.onnx_dense.symlink_to(os.path.relpath(folder.dense_artifact, run.path))
        record = run.read_record()
        metric = record["metric"]
        return Result(
            accuracy=Accuracy.model_validate(measured["accuracy"]),
            latency=Latency.model_validate(measured["latency"]),
            rate=plan.rate,
            macs=plan.macs,
            macs_dense=plan.macs_dense,
            params=measured["params"],
            steps=sum(record["steps"].values()),
            validation={key: metric[key] for key in ("dense", "before_recovery", "compressed")},
            times_fine_tuning=None if record["resumed"] else record["times_fine_tuning"]["whole"],
        )

    def _prune(self) -> PruningPlan:
        """Return the plan of a finished run that meets the target."""
        study, run = self.runner.study, self.runner.folder.run(self.cell)
        self._forget_other_settings()
        if not (run.record.is_file() and run.checkpoint.is_dir()) or run.is_interrupted:
            going_on = run.is_interrupted
            if not going_on:
                _remove(run)
            self._process(prune_words(self.runner, self.cell, going_on))
        plan = run.load_plan()
        off = (1 - plan.rate) / (1 - self.cell.rate) - 1
        if abs(off) > study.tolerance:
            what = {"flops": "the FLOPs left are", "latency": "the predicted time left is"}
            raise StepError(
                f"its rate is {plan.rate:.4f}, not {self.cell.rate:g}: {what[plan.rate_of]} "
                f"{off:+.1%} from the target, tolerated are {study.tolerance:.1%}"
            )
        return plan

    def _forget_other_settings(self) -> None:
        """Remove a run that was started before the study file was changed."""
        folder = self.runner.folder
        run, begun = folder.run(self.cell), folder.begun_file(self.cell)
        settings = json.dumps(settings_of(self.runner.study, self.cell), indent=1) + "\n"
        if begun.is_file() and begun.read_text(encoding="utf-8") == settings:
            return
        _remove(run)
        write_text(begun, settings)

    def _dense(self, plan: PruningPlan) -> None:
        """Export and evaluate the dense model, once per study."""
        folder, study = self.runner.folder, self.runner.study
        run = str(folder.run(self.cell).path)
        measured = self._measure(folder.dense_artifact, run=run)
        record = DenseRecord(
            settings=dense_settings_of(study),
            metric=measured["metric"],
            test=measured["test"],
            accuracy=Accuracy.model_validate(measured["accuracy"]),
            macs=plan.macs_dense,
            params=measured["params"],
        )
        folder.write(folder.dense_file, record)

    def _measure(
        self, artifact: Path, run: str | None = None, dense: str | None = None
    ) -> dict[str, Any]:
        study = self.runner.study
        other = study.test_data is not None
        # Of data without splits, a run has put a test part aside; it is the same in all cells.
        parted = not other and study.data is not None and not has_splits(Path(study.data))
        data = study.test_data if other else study.data
        request = MeasureRequest(
            artifact=str(artifact),
            evaluation=study.evaluation.model_dump(),
            bench=study.bench.model_dump(),
            device=self.runner.options.device,
            seed=self.runner.options.seed,
            data=None if parted else data,
            images=study.test_images if other else study.images,
            parted=str(self.runner.folder.run(self.cell).path) if parted else None,
            follow_links=study.follow_links,
            run=run,
            dense=dense,
        )
        measured: dict[str, Any] = json.loads(self._process(request.words()))
        return measured

    def _process(self, words: list[str]) -> str:
        log = self.runner.folder.log(self.cell)
        return run_process(words, log, self.runner.lock, self.threads)

    @contextmanager
    def _step(self, name: Step) -> Iterator[None]:
        self._now = name
        self.runner.note(SAID[name])
        began = time.monotonic()
        try:
            yield
        finally:
            spent = self.seconds.get(name, 0.0) + time.monotonic() - began
            self.seconds[name] = round(spent, 1)


SAID: dict[Step, str] = {
    "prune": "pruning",
    "onnx": "exporting",
    "dense": "measuring the dense model",
    "measure": "measuring",
}


def prune_words(runner: Runner, cell: Cell, going_on: bool) -> list[str]:
    """The command that prunes a cell."""
    study, options = runner.study, prune_options()
    words = ["--model", study.model, "--method", cell.row.method, "--rate", repr(cell.rate)]
    words += ["--seed", str(cell.seed), "--out", str(runner.folder.run(cell).path)]
    words += ["--device", runner.options.device]
    for key, value in (("data", study.data), ("images", study.images)):
        words += [] if value is None else [f"--{key}", value]
    words += ["--follow-links"] if study.follow_links else []
    for key, value in prune_options_of(study, cell.row).items():
        words += words_of(key, options[key], value)
    return _verb("prune", *words, *(["--resume"] if going_on else []))


def _remove(run: RunDirectory) -> None:
    """Remove a run that no process uses."""
    if run.path.exists():
        with run.locked("study"):
            shutil.rmtree(run.path)


def _measured_dense(runner: Runner) -> bool:
    record = runner.folder.read_dense(dense_settings_of(runner.study))
    return record is not None and (runner.folder.dense_artifact / "manifest.json").is_file()


def _verb(*words: str) -> list[str]:
    return [sys.executable, "-m", "comp.cli", *words]
