"""The engine of an artifact, whatever its task."""

from pathlib import Path
from typing import Literal, TypeAlias

from comp.errors import CompExportError
from comp.plan import Task
from export.artifact.encoder_manifest import EncoderArtifact, EncoderManifest
from export.artifact.load import kind_of, read_manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.artifacts import DEFAULT_FORM, ArtifactVariant, Which
from serve.backends.base import BackendName, ProviderChoice
from serve.backends.open import check_native, open_artifact
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.blip_retriever import BlipRetriever
from serve.engines.encoder_graphs import EncoderGraphs, Graphs
from serve.engines.llava import Engine
from serve.engines.retriever import Retriever

TaskEngine: TypeAlias = Engine | BlipGenerator | Judge | Retriever
ENCODERS: dict[Task, type[BlipGenerator | Judge | Retriever]] = {
    "question": BlipGenerator,
    "caption": BlipGenerator,
    "statement": Judge,
    "retrieval": Retriever,
}


def load_engine(
    directory: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    check_hashes: bool = True,
    provider: ProviderChoice = "auto",
    backend: BackendName | None = None,
) -> TaskEngine:
    """Load an artifact, or the engines of one, by what it does; arguments as ``Engine.load``.

    Raises:
        CompExportError: a missing, damaged or unloadable directory; a device, provider or backend that
            is not there or does not run what is in it.
    """
    native = kind_of(directory) == "tensorrt"
    manifest = read_engine_manifest(directory).artifact if native else read_manifest(directory)
    if not isinstance(manifest, EncoderManifest):
        return Engine.load(directory, device, threads, check_hashes, provider, backend)
    if threads is not None and threads < 1:
        raise CompExportError(f"threads {threads}: choose 1 or more")
    graphs: Graphs
    if native:
        graphs = _native(directory, device, check_hashes, provider, backend or "tensorrt")
    else:
        backend = backend or "onnxruntime"
        graphs = EncoderGraphs(
            *open_artifact(
                directory, EncoderArtifact, device, threads, check_hashes, provider, backend
            )
        )
    if manifest.family == "blip" and manifest.task == "retrieval":
        return BlipRetriever(graphs, threads)
    return ENCODERS[manifest.task](graphs, threads)


def _native(
    directory: Path, device: str, check_hashes: bool, provider: str, backend: BackendName
) -> Graphs:
    """The engines in a directory; TensorRT is imported only here."""
    from serve.engines.encoder_tensorrt import EncoderEngines

    check_native(directory, device, provider, backend)
    return EncoderEngines.load(directory, check_hashes)


def engines_of(
    directories: dict[Which, Path],
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None = None,
    form: ArtifactVariant = DEFAULT_FORM,
) -> "dict[Which, TaskEngine]":
    """Both engines in one process, run as the form says."""
    return {
        which: load_engine(directory, device, threads, provider=form.provider, backend=form.backend)
        for which, directory in directories.items()
    }
