"""Measure the accuracy of both artifacts of a run, and write the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp.data.example import AnyExample
from comp.data.of_run import LOUD, data_of_run, split_of
from comp.runs import RunDirectory
from comp.utils.device import Device
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions
from serve.artifacts import DEFAULT_VARIANT, ArtifactVariant, artifacts_of, is_verified
from serve.evaluation.by_task import measure_of, task_of
from serve.evaluation.examples import check_has_splits, examples_of
from serve.evaluation.scores import Evaluation, MeasureOptions, markdown
from serve.loading import engines_of


@dataclass(frozen=True)
class EvalRequest:
    """Request to measure accuracy.

    Attributes:
        data, images, follow_links: your own data: a file, or a sequence of examples; by default the data that
            the run was pruned on, or EmojiScenes.
        split: ``train``, ``validation`` or ``test`` (default), of the run's data or if there are splits.
        limit: number of examples; by default 2000 of EmojiScenes, all of ``data``.
        measure: batch size, length of answers, size of a gallery, seed.
        device, threads: those of the engines.
        variant: variant of the artifacts.
    """

    data: Path | Sequence[AnyExample] | None = None
    images: Path | None = None
    follow_links: bool = False
    split: str | None = None
    limit: int | None = None
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    device: Device = "auto"
    threads: int | None = None
    variant: ArtifactVariant = DEFAULT_VARIANT


@dataclass(frozen=True)
class Evaluated:
    """The report (``reports/NAME.json``), its name and title, and the scores in it."""

    report: dict[str, Any]
    name: str
    title: str
    dense: Evaluation
    compressed: Evaluation


def evaluate_run(
    run: RunDirectory,
    request: EvalRequest,
    started: Callable[[str, int], Callable[[int], None]] = lambda name, total: lambda count: None,
) -> Evaluated:
    """Measure accuracy; write ``reports/eval.json`` and ``reports/eval.md``.

    Args:
        run: an exported run; the caller holds its lock.
        request: the request.
        started: called with each artifact's name and the number of examples; returns the callback for
            more that are done.

    Raises:
        CompExportError: an artifact is missing or damaged, or the data cannot be read.
    """
    variant = request.variant
    directory, directories = artifacts_of(run.path, variant)
    task = task_of(directories["compressed"])
    examples, source = _examples(directory, task, request)
    measure = measure_of(task, request.measure)
    engines = engines_of(directories, request.device, request.threads, variant)
    dense, compressed = (
        measure(engines[which], examples, started(which, len(examples)))
        for which in ("dense", "compressed")
    )
    report = {
        "run": str(directory.path),
        "data": source,
        "task": task,
        "metric": measure.metric_of(dense),
        "device": engines["dense"].device,
        "backend": engines["dense"].backend,
        "provider": engines["dense"].provider,
        "artifact": {"flavour": variant.flavour, "precision": variant.precision},
        "dense": dense.to_dict(),
        "compressed": compressed.to_dict(),
        "same_answer": _same(dense.predictions, compressed.predictions),
        "verified": all(is_verified(path) for path in directories.values()),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    name = f"eval{variant.suffix}"
    directory.write_report(name, report)
    title = f"Accuracy of {directory.path.name} on {source['name']}"
    text = markdown(dense, compressed, title, measure.metric_of(dense))
    warning = f"\n**{LOUD}{source['warning']}.**\n" if "warning" in source else ""
    write_text(directory.reports / f"{name}.md", text + warning)
    return Evaluated(report, name, title, dense, compressed)


def _examples(
    run: RunDirectory, task: Any, request: EvalRequest
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the examples, and a record of their origin; warn of those that the run has seen."""
    data, images, limit = request.data, request.images, request.limit
    part: Any = request.split or "test"
    if isinstance(data, Path) and request.split is not None and split_of(run) is None:
        check_has_splits(data, request.split)
    own = data_of_run(run, task, data, images, request.follow_links, part)
    if own is None:
        return examples_of(task, None, images, request.split, limit, request.follow_links)
    if isinstance(data, Path) and request.split is not None and own.part is None:
        check_has_splits(data, request.split)
    chosen = own.examples if limit is None else own.examples[:limit]
    own.tell()
    return chosen, {**own.source, "n": len(chosen)}


def _same(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of examples to which both artifacts give the same answer."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
