"""The folder of a study: records of finished cells, their runs, and a lock."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from comp.errors import CompExportError
from comp.runs import RunDirectory, dotted
from comp.utils.files import discard, write_text
from comp.utils.locks import locked
from serve.study.grid import Cell

VERSION = 1
Step = Literal["prune", "onnx", "dense", "measure"]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Stored):
    """The metric on the test split.

    ``interval`` is over the examples: Wilson's for counts, a bootstrap interval for means.
    """

    value: float
    interval: tuple[float, float]
    n: int
    share: bool  # lies in [0, 1] and is shown in per cent


class Latency(_Stored):
    """Median milliseconds; compressed and dense were measured in turn in the same rounds."""

    ttft_ms: float
    dense_ttft_ms: float
    tpot_ms: float
    dense_tpot_ms: float


class Result(_Stored):
    """The measurements of a cell.

    Attributes:
        steps: number of training steps, of search and recovery together.
        validation: the metric of the dense model, before recovery, and compressed.
        times_fine_tuning: time of pruning relative to plain fine-tuning for the same number of steps;
            unknown for an interrupted run.
    """

    accuracy: Accuracy
    latency: Latency
    rate: float
    macs: int
    macs_dense: int
    params: int
    steps: int
    validation: dict[str, float]
    times_fine_tuning: float | None = None


class CellRecord(_Stored):
    """``cells/NAME.json``: a finished or failed cell.

    Attributes:
        settings: everything that the result depends on.
        result: the result of a finished cell; of a failed one ``step`` and ``reason`` are given.
        seconds: time of each step.
    """

    version: int = VERSION
    cell: str
    settings: dict[str, Any]
    result: Result | None = None
    step: Step | None = None
    reason: str | None = None
    seconds: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def own_seconds(self) -> float:
        """Total without the dense model, which one cell measures for all."""
        return sum(seconds for step, seconds in self.seconds.items() if step != "dense")


class DenseRecord(_Stored):
    """``dense.json``: the dense model, measured once."""

    version: int = VERSION
    settings: dict[str, Any]
    metric: str
    test: str  # name of the test data
    accuracy: Accuracy
    macs: int
    params: int


@dataclass(frozen=True)
class StudyFolder:
    """Names inside a study's folder (``docs/how-to/studies.md`` describes them)."""

    path: Path

    def cell_file(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.name}.json"

    def run(self, cell: Cell) -> RunDirectory:
        return RunDirectory(self.path / "runs" / cell.name)

    def begun_file(self, cell: Cell) -> Path:
        """The settings with which the cell's run was started."""
        return self.path / "runs" / f"{cell.name}.json"

    def log(self, cell: Cell) -> Path:
        return self.path / "logs" / f"{cell.name}.log"

    @property
    def dense_artifact(self) -> Path:
        return self.path / "dense" / "onnx"

    @property
    def dense_file(self) -> Path:
        return self.path / "dense.json"

    def read_cell(self, cell: Cell, settings: dict[str, Any]) -> CellRecord | None:
        """The record of a finished or failed cell; ``None`` if there is none.

        Raises:
            CompExportError: it is damaged, or was made with other settings (names the first one).
        """
        path = self.cell_file(cell)
        if not path.is_file():
            return None
        record = _read(CellRecord, path)
        check_settings(path, record.settings, settings)
        return record

    def read_dense(self, settings: dict[str, Any]) -> DenseRecord | None:
        """The dense model's record; ``None`` if it was not measured yet.

        Raises:
            CompExportError: as for ``read_cell``.
        """
        if not self.dense_file.is_file():
            return None
        record = _read(DenseRecord, self.dense_file)
        check_settings(self.dense_file, record.settings, settings)
        return record

    def write(self, path: Path, record: BaseModel) -> None:
        """Write a record atomically."""
        write_text(path, json.dumps(record.model_dump(mode="json"), indent=1) + "\n")

    def tidy(self, cell: Cell) -> None:
        """Delete a finished cell's checkpoint and graphs; its plan, stages and records stay."""
        run = self.run(cell)
        large = (run.checkpoint, run.onnx, run.onnx_dense)
        if not any(each.exists() or each.is_symlink() for each in large):
            return
        with run.locked("study"):
            for each in large:
                discard(each)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Yield the file of a lock, which is held until all processes that have it open have ended.

        So an orphaned pruning process of a killed study keeps the next study out of its run.

        Raises:
            CompExportError: another process uses the folder.
        """
        with locked(self.path, "study") as lock:
            yield lock


def check_settings(path: Path, stored: dict[str, Any], requested: dict[str, Any]) -> None:
    """Refuse to mix results of different settings.

    Raises:
        CompExportError: names the first setting that differs.
    """
    was, now = dotted(stored), dotted(json.loads(json.dumps(requested)))
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            raise CompExportError(
                f"{path} was made with {name} {_said(was, name)}, the study says {_said(now, name)}: "
                "choose another folder with --out, or delete that file to make it again"
            )


def unasked_cells(cells: Sequence[Cell], path: Path) -> list[str]:
    """Names of recorded cells that are not among ``cells``."""
    names = {cell.name for cell in cells}
    return sorted(file.stem for file in (path / "cells").glob("*.json") if file.stem not in names)


def _said(values: dict[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "left out"


def _read(kind: type[Any], path: Path) -> Any:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise CompExportError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): delete it to make it again"
        ) from error
