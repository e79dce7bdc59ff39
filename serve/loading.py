"""Load the engine of an artifact of any task."""

from pathlib import Path
from typing import Literal, TypeAlias

from comp.registry.code import resolve
from comp.registry.families import family_called
from export.artifact.load import kind_of, read_manifest
from export.artifact.manifest import Manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.artifacts import DEFAULT_VARIANT, ArtifactVariant, Which
from serve.backends.base import BackendName, ProviderChoice
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.llava import Engine
from serve.engines.retriever import Retriever

Generator: TypeAlias = Engine | BlipGenerator  # of answers and captions
TaskEngine: TypeAlias = Generator | Judge | Retriever


def load_engine(
    directory: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    check_hashes: bool = True,
    provider: ProviderChoice = "auto",
    backend: BackendName | None = None,
) -> TaskEngine:
    """Load an artifact or its engines by task; arguments as for ``Engine.load``.

    Raises:
        CompExportError: the directory is missing, damaged or cannot be loaded; the device, provider or
            backend is not available or does not run its contents.
    """
    manifest = manifest_in(directory)
    family = family_called(manifest.family)
    assert family is not None  # its manifest was read
    kind: type[TaskEngine] = resolve(family.engines[manifest.task])
    return kind.load(directory, device, threads, check_hashes, provider, backend)


def manifest_in(directory: Path) -> Manifest:
    """Read the manifest of an artifact, or that of the artifact which engines were built from.

    Raises:
        CompExportError: it is missing or damaged.
    """
    if kind_of(directory) == "tensorrt":
        return read_engine_manifest(directory).artifact
    return read_manifest(directory)


def engines_of(
    directories: dict[Which, Path],
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None = None,
    variant: ArtifactVariant = DEFAULT_VARIANT,
) -> "dict[Which, TaskEngine]":
    """Load both engines in one process, in the backend of the variant."""
    return {
        which: load_engine(
            directory, device, threads, provider=variant.provider, backend=variant.backend
        )
        for which, directory in directories.items()
    }
