"""Measure one artifact of a study in a process: ``python -m serve.study.measuring REQUEST``.

Each artifact has a fresh process, so that no memory of a cell's pruning remains while times are measured.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comp.errors import CompExportError

if TYPE_CHECKING:
    from comp.runs import RunDirectory

NAMES = ("accuracy", "mean")  # keys of shares and of other figures in ``serve.evaluation.scores``


@dataclass(frozen=True)
class MeasureRequest:
    """Request to measure one artifact.

    Attributes:
        artifact: artifact of the compressed or the dense model.
        run: for the dense artifact: a run whose dense model is exported there first.
        dense: for a compressed artifact: the dense one, timed in turn with it.
        evaluation, bench: tables of the study file.
        data, images: file that accuracy is measured on, with its test split if it has splits.
        parted: instead of ``data``: a run whose own data has a test part.
    """

    artifact: str
    evaluation: dict[str, int]
    bench: dict[str, Any]
    device: Literal["auto", "cpu", "cuda"]
    seed: int
    data: str | None = None
    images: str | None = None
    follow_links: bool = False
    run: str | None = None
    dense: str | None = None
    parted: str | None = None

    def words(self) -> list[str]:
        """The command of the process."""
        return [sys.executable, "-m", "serve.study.measuring", json.dumps(asdict(self))]


def measure(request: MeasureRequest) -> dict[str, Any]:
    """Evaluate the artifact on the test split, then time it if a dense one is given."""
    from comp.runs import RunDirectory

    artifact = Path(request.artifact)
    run = RunDirectory(artifact.parent)
    with run.locked("study") if run.record.is_file() else nullcontext():
        if request.run is not None:
            _export_dense(Path(request.run), artifact)
        measured = _evaluated(artifact, request)
        if request.dense is not None:
            measured["latency"] = _timed(artifact, Path(request.dense), request)
    return measured


def _export_dense(run: Path, out: Path) -> None:
    """Export the dense model of a run, with costs on that run's workload."""
    from comp.checkpoints.dense_model import dense_model_of
    from comp.runs import open_run
    from export.exporter import Origin, export_artifact

    directory = open_run(run)
    plan = directory.load_plan()
    export_artifact(dense_model_of(directory), out, Origin(plan.model, workload=plan.workload))


def _evaluated(artifact: Path, request: MeasureRequest) -> dict[str, Any]:
    from comp.runs import RunDirectory
    from export.artifact.load import read_manifest
    from serve.evaluation.by_task import measure_of, task_of
    from serve.evaluation.examples import examples_of
    from serve.evaluation.scores import MeasureOptions
    from serve.loading import load_engine

    settings = request.evaluation
    task = task_of(artifact)
    wanted = MeasureOptions(
        settings["batch_size"], settings["max_new_tokens"], settings["gallery"], request.seed
    )
    measure = measure_of(task, wanted)
    images = None if request.images is None else Path(request.images)
    limit, links = settings["limit"], request.follow_links
    if request.parted is not None:
        examples, source = held_out(RunDirectory(Path(request.parted)), task, images, limit, links)
    else:
        data = None if request.data is None else Path(request.data)
        examples, source = examples_of(task, data, images, None, limit, links)
    engine = load_engine(artifact, request.device, request.bench["threads"])
    evaluation = measure(engine, examples, lambda _: None)
    figure = evaluation.overall.to_dict()
    name = next(name for name in NAMES if name in figure)
    manifest = read_manifest(artifact)
    return {
        "accuracy": {
            "value": figure[name],
            "interval": figure["ci95"],
            "n": figure["n"],
            "share": name == "accuracy",
        },
        "metric": measure.metric_of(evaluation),
        "test": source["name"],
        "params": manifest.params,
    }


def held_out(
    run: "RunDirectory", task: Any, images: Path | None, limit: int, follow_links: bool
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the test part of the data that a run was pruned on, and its name.

    Raises:
        CompExportError: the data has changed, or the run has no split.
    """
    from comp.data.of_run import data_of_run

    own = data_of_run(run, task, None, images, follow_links)
    if own is None:
        raise CompExportError(
            f"{run.path} was pruned by an earlier release, which put no test part aside: remove it, or name "
            "a file that is not trained on with test_data"
        )
    return own.examples[:limit], own.source


def _timed(artifact: Path, dense: Path, request: MeasureRequest) -> dict[str, float]:
    from serve.artifacts import DEFAULT_VARIANT
    from serve.bench.compare import BenchOptions, Contestant, bench
    from serve.bench.request import work_of
    from serve.evaluation.by_task import task_of

    settings = request.bench
    work = work_of(task_of(artifact), (), (), settings["new_tokens"], request.seed)
    options = BenchOptions(
        work=work,
        warmup=settings["warmup"],
        repeats=settings["repeats"],
        cold_starts=1,
        device=request.device,
        threads=settings["threads"],
    )
    report = bench([Contestant(DEFAULT_VARIANT, {"dense": dense, "compressed": artifact})], options)
    ours, theirs = report["compressed"], report["dense"]
    return {
        "ttft_ms": ours["ttft_ms"],
        "dense_ttft_ms": theirs["ttft_ms"],
        "tpot_ms": ours["tpot_ms"],
        "dense_tpot_ms": theirs["tpot_ms"],
    }


def _main(arguments: list[str]) -> None:
    request = MeasureRequest(**json.loads(arguments[0]))
    try:
        sys.stdout.write(json.dumps(measure(request), allow_nan=False))
    except CompExportError as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    _main(sys.argv[1:])
