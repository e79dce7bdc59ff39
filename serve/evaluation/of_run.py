"""Measure the accuracy of both artifacts of a run, and write the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp.data.example import AnyExample, check_examples
from comp.runs import RunDirectory
from comp.utils.device import Device
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions
from serve.artifacts import DEFAULT_VARIANT, ArtifactVariant, artifacts_of, is_verified
from serve.evaluation.by_task import measure_of, task_of
from serve.evaluation.examples import examples_of
from serve.evaluation.scores import Evaluation, MeasureOptions, markdown
from serve.loading import engines_of


@dataclass(frozen=True)
class EvalRequest:
    """Request to measure accuracy.

    Attributes:
        data, images, follow_links: your own data: a file, or a sequence of examples; by default EmojiScenes.
        split: ``train``, ``validation`` or ``test`` (default), if there are splits.
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
    examples, source = _examples(task, request)
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
        "metric": measure.metric,
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
    write_text(directory.reports / f"{name}.md", markdown(dense, compressed, title, measure.metric))
    return Evaluated(report, name, title, dense, compressed)


def _examples(task: Any, request: EvalRequest) -> tuple[Sequence[Any], dict[str, Any]]:
    data, limit = request.data, request.limit
    if data is None or isinstance(data, Path):
        images = request.images
        return examples_of(task, data, images, request.split, limit, request.follow_links)
    check_examples(task, data)
    chosen = data if limit is None else data[:limit]
    return chosen, {"name": f"{len(chosen)} examples", "n": len(chosen)}


def _same(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of examples to which both artifacts give the same answer."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
