"""``serve.load`` and ``serve.evaluate``: run artifacts and measure their accuracy, from Python."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from comp.data.example import AnyExample
from comp.runs import RunDirectory, run_at
from comp.utils.arguments import check_choices, check_counts, path_of
from comp.utils.device import DEVICES, Device
from export.artifact.manifest import MANIFEST_NAME, Flavour, Precision
from serve.artifacts import ArtifactVariant, artifact_of
from serve.backends.base import BackendName, ProviderChoice
from serve.evaluation.of_run import EvalRequest, evaluate_run
from serve.evaluation.scores import MeasureOptions
from serve.loading import TaskEngine, load_engine


def load(
    run: RunDirectory | str | Path,
    *,
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
        CompExportError: no such run or artifact, a damaged file, or a backend that is not installed or does
            not run the artifact.
    """
    check_choices(
        backend=(backend or "onnxruntime", get_args(BackendName)),
        provider=(provider, get_args(ProviderChoice)),
        precision=(precision or "float32", get_args(Precision)),
        flavour=(flavour or "onnxruntime", get_args(Flavour)),
        device=(device, DEVICES),
    )
    check_counts(threads=threads)
    if not isinstance(run, RunDirectory) and (path_of("run", run) / MANIFEST_NAME).is_file():
        return load_engine(Path(run), device, threads, check_hashes, provider, backend)
    variant = ArtifactVariant.choose(backend or "onnxruntime", provider, flavour, precision)
    directory = artifact_of(run_at(run), "dense" if dense else "compressed", variant)
    return load_engine(directory, device, threads, check_hashes, variant.provider, variant.backend)


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
