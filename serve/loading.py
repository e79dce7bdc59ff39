"""The engine of an artifact, whatever its task."""

from pathlib import Path
from typing import Literal, TypeAlias

from comp.registry import family_called, resolve
from export.artifact.load import kind_of, read_manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.artifacts import DEFAULT_FORM, ArtifactVariant, Which
from serve.backends.base import BackendName, ProviderChoice
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.llava import Engine
from serve.engines.retriever import Retriever

TaskEngine: TypeAlias = Engine | BlipGenerator | Judge | Retriever


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
    family = family_called(manifest.family)
    assert family is not None  # whose manifest was read
    kind: type[TaskEngine] = resolve(family.engines[manifest.task])
    return kind.load(directory, device, threads, check_hashes, provider, backend)


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
