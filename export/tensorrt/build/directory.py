"""Build every engine of an artifact into a directory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.errors import CompExportError
from comp.registry.code import resolve
from comp.registry.families import family_called
from comp.utils.files import writing_directory
from export.artifact.load import load_artifact, read_manifest
from export.artifact.manifest import TOKENIZER, Manifest, describe_files
from export.tensorrt.build.engine import BuildOptions, build_engine
from export.tensorrt.library import TensorRT
from export.tensorrt.limits import Limits
from export.tensorrt.manifest import EngineEntry, EngineManifest, EngineProfile


def choose_limits(source: Path, **requested: int | None) -> Limits:
    """Complete the requested limits with the usual ones of the model.

    Args:
        source: artifact directory.
        requested: fields of ``Limits``; ``None`` takes the usual value.
    """
    manifest = read_manifest(source)
    usual: Limits = _profiles_of(manifest).usual_limits(manifest)
    chosen = {name: value for name, value in requested.items() if value is not None}
    return usual.model_copy(update=chosen)


def build_engines(
    tensorrt: TensorRT,
    source: Path,
    out: Path,
    limits: Limits,
    options: BuildOptions,
    progress: Callable[[str, str], None] = lambda engine, phase: None,
) -> EngineManifest:
    """Build the engines of an artifact.

    Args:
        tensorrt: the module that builds.
        source: artifact directory, of the standard flavour.
        out: directory to write; replaced as a whole once everything is built.
        limits: the largest request.
        options: options of building.
        progress: called with each engine's name and phase.

    Returns:
        The manifest.

    Raises:
        CompExportError: an artifact of another flavour, a damaged one, limits that are too large for the
            model, or a failed build.
    """
    artifact = load_artifact(source)
    model = artifact.manifest
    if model.flavour != "standard":
        raise CompExportError(
            f"{source} is of the {model.flavour} flavour, TensorRT reads the standard one: "
            f"run `comp-export onnx --flavour standard --precision {model.precision}`"
        )
    profiles = _profiles_of(model)
    entries: dict[str, EngineEntry] = {}
    with writing_directory(out) as directory:
        for graph in profiles.engine_graphs(model, limits):
            progress(graph.name, "")
            built = build_engine(
                tensorrt,
                source,
                graph,
                options,
                lambda phase, name=graph.name: progress(name, phase),  # type: ignore[misc]
            )
            file = f"{graph.name}.engine"
            (directory / file).write_bytes(built.data)
            entries[graph.name] = EngineEntry(
                file=file,
                graph=graph.graph,
                profiles=tuple(
                    EngineProfile(name=name, shapes=shapes)
                    for name, shapes in built.profiles.items()
                ),
                blocks=built.blocks,
            )
        shutil.copyfile(artifact.tokenizer, directory / TOKENIZER)
        manifest = EngineManifest(
            module=tensorrt.name,
            module_version=tensorrt.version,
            compute_capabilities=options.capabilities,
            weights=options.weights,
            limits=limits,
            cache_capacities=profiles.cache_capacities(model, limits),
            engines=entries,
            artifact=model.model_copy(update={"verified": None}),
            artifact_directory=source.name,
            files=describe_files(directory),
        )
        manifest.save(directory)
    return manifest


def _profiles_of(manifest: Manifest) -> Any:
    """Return the module ``Family.engine_profiles`` of a model's family."""
    family = family_called(manifest.family)
    assert family is not None  # whose manifest was read
    return resolve(family.engine_profiles)
