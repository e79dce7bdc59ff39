"""Read the fields of an artifact's manifest that ``inspect`` shows, and check their types.

``export``, which opens artifacts, checks all fields.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from comp.utils.json_files import read_object
from comp.utils.versioned_json import validated

AGAIN = "export the artifact again"


class _File(BaseModel):
    name: str
    bytes: int = Field(ge=0, le=2**62)
    sha256: str


class _Verified(BaseModel):
    ok: bool


class _Graphs(BaseModel):
    """Fields of an artifact of graphs, or of the one that engines were built from."""

    flavour: str = ""
    precision: str = ""
    model: str = ""


class _Artifact(_Graphs):
    files: tuple[_File, ...]
    verified: _Verified | None = None


class _Profile(BaseModel):
    name: str
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class _Block(BaseModel):
    block: str
    attention: str
    caches_in_place: int


class _Engine(BaseModel):
    profiles: tuple[_Profile, ...]
    blocks: tuple[_Block, ...]


class _Engines(BaseModel):
    kind: Literal["tensorrt"]
    module: str
    module_version: str
    compute_capabilities: tuple[str, ...]
    weights: str
    cache_capacities: tuple[int, ...]
    artifact: _Graphs
    engines: dict[str, _Engine]
    files: tuple[_File, ...]
    verified: _Verified | None = None


def read_shown_manifest(path: Path) -> dict[str, Any]:
    """Return the fields of a manifest, after checking the types of those that are shown.

    Raises:
        CompExportError: the file cannot be read, or a field is invalid (names it).
    """
    manifest = read_object(path, AGAIN)
    kind: type[BaseModel] = _Engines if manifest.get("kind") == "tensorrt" else _Artifact
    validated(kind, manifest, path, AGAIN)
    return manifest
