"""Summarise the cells of a study: rows, margins over other rows, the ablation, failures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from comp.errors import CompExportError
from serve.study.folder import (
    CellRecord,
    DenseRecord,
    Result,
    Step,
    StudyFolder,
    unasked_cells,
)
from serve.study.grid import (
    Cell,
    Removes,
    Row,
    cells_of,
    dense_settings_of,
    reference_of,
    removes_of,
    rows_of,
    settings_of,
)
from serve.study.intervals import Estimate, Interval, paired
from serve.study.schema import Study

OVER_SEEDS, OF_EXAMPLES = "t over seeds", "of the examples, one seed"


@dataclass(frozen=True)
class RowSummary:
    """A row at one rate, over the finished seeds.

    Attributes:
        interval: 95 %, by Student's t over several seeds; for one seed over the test examples.
        spread: what the interval is over, in words: seeds or test examples.
        macs, params: means.
        steps: training steps, the minimum and the maximum over cells.
        ttft_share, tpot_share: medians over cells of the times to the first and to each further token,
            relative to the dense model timed in the same rounds, so that slow hours of the machine
            cancel. ``tpot_share`` is ``None`` if no text is generated.
        seconds: mean per cell.
        times_fine_tuning: median over the cells whose runs were not interrupted.
    """

    row: str
    method: str
    removes: Removes
    rate: float
    seeds: tuple[int, ...]
    accuracy: float
    interval: Interval
    spread: str
    macs: float
    params: float
    steps: tuple[int, int]
    ttft_share: float
    tpot_share: float | None
    seconds: float
    times_fine_tuning: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Margin:
    """The accuracy of the reference minus that of another row, paired by seed."""

    rate: float
    row: str
    removes: Removes
    margin: float
    interval: Interval | None
    n: int
    best_single: bool  # the most accurate of those that remove only parameters or only tokens
    ablation: bool  # the reference's method without a part, or with another setting

    @property
    def verdict(self) -> str:
        """Whether the interval excludes zero."""
        if self.interval is None:
            return "one seed: unknown"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


@dataclass(frozen=True)
class Failure:
    """A cell that failed."""

    cell: str
    step: Step | None
    reason: str


@dataclass(frozen=True)
class Summary:
    """A study's report, for machines.

    Attributes:
        cells: number in the study file; ``done`` and ``failed`` have records.
        share: whether the metric lies in [0, 1].
        dense_ttft_ms, dense_tpot_ms: medians of the cells' medians.
        seconds: time of all cells with a record.
        unasked: recorded cells that are not in the study file (any more).
    """

    name: str
    model: str
    metric: str
    test: str
    share: bool
    reference: str | None
    cells: int
    done: int
    dense: DenseRecord
    dense_ttft_ms: float
    dense_tpot_ms: float
    rows: tuple[RowSummary, ...]
    margins: tuple[Margin, ...]
    failed: tuple[Failure, ...]
    seconds: float
    machines: tuple[str, ...]
    versions: dict[str, str]
    unasked: tuple[str, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        margins = [{**asdict(margin), "verdict": margin.verdict} for margin in self.margins]
        dense = self.dense.model_dump(mode="json")
        return {"version": 1, **asdict(self), "margins": margins, "dense": dense}


def summarise(study: Study, path: Path, name: str) -> Summary:
    """Read and summarise the records of a study's folder.

    Raises:
        CompExportError: no cell is finished yet, or a record is damaged or has other settings.
    """
    folder = StudyFolder(path)
    cells = cells_of(study)
    stored = {cell: folder.read_cell(cell, settings_of(study, cell)) for cell in cells}
    records = {cell: record for cell, record in stored.items() if record is not None}
    failed = tuple(
        Failure(record.cell, record.step, record.reason or "")
        for record in records.values()
        if record.result is None
    )
    dense = folder.read_dense(dense_settings_of(study))
    done = {cell: record for cell, record in records.items() if record.result is not None}
    if dense is None or not done:
        why = f": {failed[0].cell} failed at {failed[0].step}: {failed[0].reason}" if failed else ""
        raise CompExportError(
            f"no cell of {path} is done{why}; "
            + ("--retry tries again" if failed else "run the study without --report-only")
        )
    rows = tuple(
        _row(study, row, rate, done)
        for rate in study.rates
        for row in rows_of(study)
        if any(cell.row == row and cell.rate == rate for cell in done)
    )
    last = next(reversed(done.values()))
    return Summary(
        name=name,
        model=study.model,
        metric=dense.metric,
        test=f"{dense.test}, {dense.accuracy.n:,}",
        share=dense.accuracy.share,
        reference=reference_of(study),
        cells=len(cells),
        done=len(done),
        dense=dense,
        dense_ttft_ms=median(_result(record).latency.dense_ttft_ms for record in done.values()),
        dense_tpot_ms=median(_result(record).latency.dense_tpot_ms for record in done.values()),
        rows=rows,
        margins=tuple(_margins(study, rows)),
        failed=failed,
        seconds=sum(sum(record.seconds.values()) for record in records.values()),
        machines=tuple(sorted({_machine(record.machine) for record in done.values()})),
        versions=last.versions,
        unasked=tuple(unasked_cells(cells, folder.path)),
        settings=study.model_dump(mode="json", exclude_none=True),
    )


def _row(study: Study, row: Row, rate: float, done: Mapping[Cell, CellRecord]) -> RowSummary:
    by_seed = {
        cell.seed: record for cell, record in done.items() if cell.row == row and cell.rate == rate
    }
    results = [_result(record) for record in by_seed.values()]
    ratios = [
        result.times_fine_tuning for result in results if result.times_fine_tuning is not None
    ]
    accuracy = Estimate.of([result.accuracy.value for result in results])
    return RowSummary(
        row=row.name,
        method=row.method,
        removes=removes_of(study, row),
        rate=rate,
        seeds=tuple(by_seed),
        accuracy=accuracy.mean,
        interval=accuracy.interval or results[0].accuracy.interval,
        spread=OVER_SEEDS if accuracy.interval else OF_EXAMPLES,
        macs=mean(result.macs for result in results),
        params=mean(result.params for result in results),
        steps=(min(result.steps for result in results), max(result.steps for result in results)),
        ttft_share=median(
            result.latency.ttft_ms / result.latency.dense_ttft_ms for result in results
        ),
        tpot_share=median(
            result.latency.tpot_ms / result.latency.dense_tpot_ms for result in results
        )
        if all(result.latency.dense_tpot_ms for result in results)
        else None,
        seconds=mean(record.own_seconds for record in by_seed.values()),
        times_fine_tuning=median(ratios) if ratios else None,
        by_seed=tuple(result.accuracy.value for result in results),
    )


def _margins(study: Study, rows: Sequence[RowSummary]) -> list[Margin]:
    """The margins of the reference over every other row, rate by rate."""
    reference = reference_of(study)
    rows_by_name = {row.name: row for row in rows_of(study)}
    margins = []
    for ours in (row for row in rows if row.row == reference):
        others = [row for row in rows if row.rate == ours.rate and row.row != reference]
        single = [row for row in others if row.removes != "both"]
        best = max(single, key=lambda row: row.accuracy, default=None)
        for row in others:
            difference = paired(_by_seed(ours), _by_seed(row))
            if difference is None:
                continue
            part = row.method == ours.method and row.removes == ours.removes
            margins.append(
                Margin(
                    rate=ours.rate,
                    row=row.row,
                    removes=row.removes,
                    margin=difference.mean,
                    interval=difference.interval,
                    n=difference.n,
                    best_single=row is best,
                    ablation=part and rows_by_name[row.row].name in study.variants,
                )
            )
    return margins


def _by_seed(row: RowSummary) -> dict[int, float]:
    return dict(zip(row.seeds, row.by_seed, strict=True))


def _result(record: CellRecord) -> Result:
    assert record.result is not None
    return record.result


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores"
