"""Open artifacts; each family has its own manifest class.

This module needs neither torch, transformers nor onnx.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from comp.errors import CompExportError
from comp.registry.code import resolve
from comp.registry.families import FAMILIES, family_called
from comp.utils.json_files import read_json
from comp.utils.versioned_json import validated
from export.artifact.graph_check import check_graphs
from export.artifact.manifest import (
    MANIFEST_NAME,
    REMEDY,
    TOKENIZER,
    Artifact,
    Manifest,
    check_files,
    read_fields,
    remade,
)

VERB = "comp-export onnx"
A = TypeVar("A", bound=Artifact)


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` without checking the other files; return an instance of its family's class.

    Raises:
        CompExportError: it is missing, not a manifest, or of another version or family.
    """
    path = directory / MANIFEST_NAME
    fields = read_fields(path, VERB)
    try:
        kind = manifest_class(fields)
    except ValueError as error:
        raise CompExportError(f"{path}: {error}: {REMEDY}") from error
    return validated(kind, fields, path, remade(VERB))


def manifest_class(fields: dict[str, Any]) -> type[Manifest]:
    """Return the class of a manifest's family.

    Raises:
        ValueError: the family is unknown.
    """
    name = fields.get("family")
    family = family_called(name) if isinstance(name, str) else None
    if family is None:
        known = ", ".join(each.name for each in FAMILIES)
        raise ValueError(f"the family is {str(name)[:40]!r}, this release knows {known}")
    kind: type[Manifest] = resolve(family.manifest)
    return kind


def kind_of(directory: Path) -> Literal["onnx", "tensorrt"]:
    """Return what a directory's ``manifest.json`` describes; ``onnx`` if it does not say."""
    try:
        manifest = read_json(directory / MANIFEST_NAME, REMEDY)
    except CompExportError:
        return "onnx"  # opening it reports the error
    is_engines = isinstance(manifest, dict) and manifest.get("kind") == "tensorrt"
    return "tensorrt" if is_engines else "onnx"


def load_artifact(directory: Path, check_hashes: bool = True) -> Artifact:
    """Open an artifact; refuse it if its files or graphs do not match the manifest.

    Args:
        directory: holds ``manifest.json`` and the files it lists.
        check_hashes: also read every file and compare its SHA-256 (sizes are always compared).

    Returns:
        An instance of its family's class.

    Raises:
        CompExportError: names the first file that is missing, truncated or changed, or the graph whose
            inputs, outputs or position tables differ.
    """
    manifest = read_manifest(directory)
    needed = (*manifest.graphs, TOKENIZER)
    check_files(directory, manifest.files, needed, check_hashes, REMEDY)
    family = family_called(manifest.family)
    assert family is not None  # whose manifest it is
    artifact: Artifact = resolve(family.artifact)(directory, manifest)
    check_graphs(artifact)
    return artifact


def load_artifact_of(directory: Path, kind: type[A], check_hashes: bool = True) -> A:
    """Open an artifact that must be of one class; see ``load_artifact``.

    Raises:
        CompExportError: also an artifact of another family.
    """
    artifact = load_artifact(directory, check_hashes)
    if not isinstance(artifact, kind):
        families = [each.name for each in FAMILIES if resolve(each.artifact) is kind]
        raise CompExportError(
            f"{directory} holds a {artifact.manifest.family} model, and this needs one of "
            f"{', '.join(families)}: pass another run"
        )
    return artifact
