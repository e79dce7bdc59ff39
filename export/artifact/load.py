"""Opening artifacts: each family has a manifest of its own.

Nothing here needs torch, transformers or onnx.
"""

from pathlib import Path
from typing import Literal, TypeVar

from comp.errors import CompExportError
from comp.registry import FAMILIES, family_called, resolve
from comp.utils.json_files import read_json
from comp.utils.versioned_json import validated
from export.artifact.checkpoint_files import TOKENIZER
from export.artifact.graph_check import check_graphs
from export.artifact.manifest import (
    MANIFEST_NAME,
    REMEDY,
    Artifact,
    Manifest,
    Verified,
    check_files,
    read_fields,
    remade,
)

VERB = "comp-export onnx"
A = TypeVar("A", bound=Artifact)


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` without looking at the other files; it is of its family's class.

    Raises:
        CompExportError: there is none, it is no manifest, or one of another version or family.
    """
    path = directory / MANIFEST_NAME
    found = read_fields(path, VERB)
    family = found.get("family")
    known = family_called(family) if isinstance(family, str) else None
    if known is None:
        raise CompExportError(
            f"{path}: the family is {str(family)[:40]!r}, this release knows "
            f"{', '.join(each.name for each in FAMILIES)}: {REMEDY}"
        )
    kind: type[Manifest] = resolve(known.manifest)
    return validated(kind, found, path, remade(VERB))


def kind_of(directory: Path) -> Literal["onnx", "tensorrt"]:
    """What a directory's ``manifest.json`` describes; graphs where it says nothing."""
    try:
        found = read_json(directory / MANIFEST_NAME, REMEDY)
    except CompExportError:
        return "onnx"  # whoever opens it next says what is wrong
    is_engines = isinstance(found, dict) and found.get("kind") == "tensorrt"
    return "tensorrt" if is_engines else "onnx"


def load_artifact(directory: Path, check_hashes: bool = True) -> Artifact:
    """Open an artifact, refusing one whose files or graphs are not what the manifest says.

    Args:
        directory: holds ``manifest.json`` and the files it lists.
        check_hashes: also read every file and compare its SHA-256 (sizes are always compared).

    Returns:
        An artifact of its family's class.

    Raises:
        CompExportError: names the first file that is missing, truncated or changed, or is a graph of
            other inputs, outputs or positions.
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
    """As ``load_artifact``, where only one class of artifacts will do.

    Raises:
        CompExportError: also an artifact of another family.
    """
    found = load_artifact(directory, check_hashes)
    if not isinstance(found, kind):
        families = [each.name for each in FAMILIES if resolve(each.artifact) is kind]
        raise CompExportError(
            f"{directory} holds a {found.manifest.family} model, and this needs one of "
            f"{', '.join(families)}: pass another run"
        )
    return found


def mark_verified(directory: Path, verified: Verified) -> Manifest:
    """Record a verification in the manifest; returns the new one."""
    manifest = read_manifest(directory).model_copy(update={"verified": verified})
    manifest.save(directory)
    return manifest
