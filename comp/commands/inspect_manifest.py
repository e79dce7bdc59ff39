"""The part of an artifact's manifest that ``inspect`` shows, with its fields checked.

What all of them must be is known to ``export``, which opens artifacts.
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
    """The fields of an artifact of graphs, or of the one that engines were built from."""

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
    """The fields of a manifest, of which those that are shown have the types that they can have.

    Raises:
        CompExportError: the file cannot be read, or names the field that is wrong.
    """
    found = read_object(path, AGAIN)
    kind: type[BaseModel] = _Engines if found.get("kind") == "tensorrt" else _Artifact
    validated(kind, found, path, AGAIN)
    return found
