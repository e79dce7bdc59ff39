"""The engine of an artifact, whatever its task."""

from pathlib import Path
from typing import Literal, TypeAlias

from comp.errors import CompExportError
from comp.plan import Task
from export.encoder_manifest import EncoderManifest
from export.reading import kind_of, read_manifest
from serve.backends.base import ProviderChoice
from serve.encoder.blip_retriever import BlipRetriever
from serve.encoder.graphs import EncoderGraphs
from serve.encoder.judge import Judge
from serve.encoder.reader import Reader
from serve.encoder.retriever import Retriever
from serve.engine import Engine

TaskEngine: TypeAlias = Engine | Reader | Judge | Retriever
ENCODERS: dict[Task, type[Reader | Judge | Retriever]] = {
    "question": Reader,
    "caption": Reader,
    "statement": Judge,
    "retrieval": Retriever,
}


def load_engine(
    directory: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    check_hashes: bool = True,
    provider: ProviderChoice = "auto",
) -> TaskEngine:
    """Load an artifact, or the engines of one, by what it does; arguments as ``Engine.load``.

    Raises:
        CompExportError: a missing, damaged or unloadable directory; a device or provider that is not
            there.
    """
    if kind_of(directory) == "tensorrt":
        return Engine.load(directory, device, threads, check_hashes, provider)
    manifest = read_manifest(directory)
    if not isinstance(manifest, EncoderManifest):
        return Engine.load(directory, device, threads, check_hashes, provider)
    if threads is not None and threads < 1:
        raise CompExportError(f"threads {threads}: choose 1 or more")
    graphs = EncoderGraphs.load(directory, device, threads, check_hashes, provider)
    if manifest.family == "blip" and manifest.task == "retrieval":
        return BlipRetriever(graphs, threads)
    return ENCODERS[manifest.task](graphs, threads)
