"""``serve.load`` and ``serve.evaluate``: run artifacts and measure their accuracy, from Python."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, overload

from comp.data.example import AnyExample
from comp.errors import CompExportError
from comp.plan import Task
from comp.runs import RunDirectory, run_at
from comp.utils.arguments import check_choices, check_counts, path_of
from comp.utils.device import DEVICES, Device
from export.artifact.manifest import MANIFEST_NAME, Flavour, Precision
from serve.artifacts import ArtifactVariant, artifact_of
from serve.backends.base import BackendName, ProviderChoice
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.retriever import Retriever
from serve.evaluation.by_task import task_of
from serve.evaluation.of_run import EvalRequest, evaluate_run
from serve.evaluation.scores import MeasureOptions
from serve.loading import Generator, TaskEngine, load_engine

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LoadOptions(TypedDict, total=False):
    """The options of ``load`` that do not change its type."""

    dense: bool
    backend: BackendName | None
    provider: ProviderChoice
    precision: Precision | None
    flavour: Flavour | None
    device: Device
    threads: int | None
    check_hashes: bool


@overload
def load(
    run: RunDirectory | str | Path,
    *,
    task: Literal["question"],
    **options: "Unpack[LoadOptions]",
) -> Generator: ...
@overload
def load(
    run: RunDirectory | str | Path,
    *,
    task: Literal["caption"],
    **options: "Unpack[LoadOptions]",
) -> BlipGenerator: ...
@overload
def load(
    run: RunDirectory | str | Path,
    *,
    task: Literal["statement"],
    **options: "Unpack[LoadOptions]",
) -> Judge: ...
@overload
def load(
    run: RunDirectory | str | Path,
    *,
    task: Literal["retrieval"],
    **options: "Unpack[LoadOptions]",
) -> Retriever: ...
@overload
def load(
    run: RunDirectory | str | Path,
    *,
    task: Task | None = None,
    **options: "Unpack[LoadOptions]",
) -> TaskEngine: ...
def load(
    run: RunDirectory | str | Path,
    *,
    task: Task | None = None,
    dense: bool = False,
    backend: BackendName | None = None,
    provider: ProviderChoice = "auto",
    precision: Precision | None = None,
    flavour: Flavour | None = None,
    device: Device = "auto",
    threads: int | None = None,
    check_hashes: bool = True,
) -> TaskEngine:
    """Load the engine of an artifact, as ``comp-export run`` and the page use it.

    Args:
        run: an exported run or its directory; or the directory of an artifact (``manifest.json``), which
            may be on a machine without the run.
        task: the model's task, if it is known: type checkers then know the engine, and a model of another
            task is refused.
        dense: load the dense artifact of a run.
        backend: runtime of the graphs; by default ONNX Runtime, and TensorRT for engines.
        provider: ONNX Runtime's execution provider.
        precision, flavour: those of the export to load, if a run has several.
        device: ``auto`` takes a GPU if there is one.
        threads: threads of one operator on the CPU; by default one for each core.
        check_hashes: compare the SHA-256 of every file with the manifest.

    Returns:
        The engine of the artifact's task: ``Engine`` (``generate``, ``stream``) for a LLaVA,
        ``BlipGenerator`` for captions and questions of a BLIP, ``Judge`` for statements, ``Retriever``.

    Raises:
        CompExportError: no such run or artifact, a damaged file, a model of another task, or a backend that
            is not installed or does not run the artifact.
    """
    check_choices(
        task=(task or "question", get_args(Task)),
        backend=(backend or "onnxruntime", get_args(BackendName)),
        provider=(provider, get_args(ProviderChoice)),
        precision=(precision or "float32", get_args(Precision)),
        flavour=(flavour or "onnxruntime", get_args(Flavour)),
        device=(device, DEVICES),
    )
    check_counts(threads=threads)
    if not isinstance(run, RunDirectory) and (path_of("run", run) / MANIFEST_NAME).is_file():
        _check_task(Path(run), task)
        return load_engine(Path(run), device, threads, check_hashes, provider, backend)
    variant = ArtifactVariant.choose(backend or "onnxruntime", provider, flavour, precision)
    directory = artifact_of(run_at(run), "dense" if dense else "compressed", variant)
    _check_task(directory, task)
    return load_engine(directory, device, threads, check_hashes, variant.provider, variant.backend)


def _check_task(directory: Path, task: Task | None) -> None:
    """Refuse an artifact of another task.

    Raises:
        CompExportError: names the artifact's task.
    """
    actual = task_of(directory)
    if task is not None and actual != task:
        raise CompExportError(
            f"{directory} is a model of the task {actual!r}, not {task!r}: leave task out, or load another"
        )


def evaluate(
    run: RunDirectory | str | Path,
    *,
    data: str | Path | Sequence[AnyExample] | None = None,
    images: str | Path | None = None,
    follow_links: bool = False,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    gallery: int = 200,
    seed: int = 0,
    variant: ArtifactVariant | None = None,
    device: Device = "auto",
    threads: int | None = None,
    started: Callable[[str, int], Callable[[int], None]] = lambda name, total: lambda count: None,
) -> dict[str, Any]:
    """Measure the accuracy of the dense and the compressed artifact of a run.

    Args:
        run: an exported run, or its directory.
        data: your own data: a file, or a sequence of examples; by default the data that the run was pruned
            on, or EmojiScenes.
        images: the folder of the images that a file names.
        follow_links: also read images through links that leave that folder.
        split: ``train``, ``validation`` or ``test`` (default), of the run's data or if there are splits.
        limit: number of examples; by default 2000 of EmojiScenes, all of ``data``.
        batch_size: examples answered together.
        max_new_tokens: length of the greedy answers.
        gallery: retrieval: number of images, and texts, ranked together.
        seed: seed of the choice of galleries.
        variant: the export, and the backend that runs it.
        device, threads: those of the engines.
        started: called with each artifact's name and the number of examples; returns the callback for
            more that are done.

    Returns:
        The content of ``reports/eval.json``.

    Raises:
        CompExportError: an artifact is missing or damaged, or the data cannot be read.
    """
    check_choices(device=(device, DEVICES))
    check_counts(
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        gallery=gallery,
        threads=threads,
    )
    directory = run_at(run)
    request = EvalRequest(
        Path(data) if isinstance(data, str) else data,
        None if images is None else path_of("images", images),
        follow_links,
        split,
        limit,
        MeasureOptions(batch_size, max_new_tokens, gallery, seed),
        device,
        threads,
        variant or ArtifactVariant(),
    )
    with directory.locked("eval"):
        return evaluate_run(directory, request, started).report
