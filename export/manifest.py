"""``manifest.json``: what an artifact is, and the means to refuse a damaged one.

Nothing here needs torch, transformers or onnx: the engine reads artifacts with it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from comp.errors import CompExportError
from comp.files import write_text
from comp.image_settings import ImageProcessing
from comp.plan import Task, Workload
from comp.versioned import read_versioned

MANIFEST_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
REMEDY = "export it again with `comp-export onnx --force`"
READ_BLOCK = 1 << 20  # bytes read at a time when hashing

Flavour = Literal["onnxruntime", "standard"]
Computed = Literal["float32", "float16", "bfloat16"]
Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""Of weights, computation and caches; int8 and int4 are of weights, the rest is float32."""


Rounding = Literal["nearest", "calibrated"]
"""How weights became integers."""


def computed_in(precision: Precision) -> Computed:
    """The precision of computation and caches."""
    return "float32" if precision in ("int8", "int4") else precision  # type: ignore[return-value]


class Frozen(BaseModel):
    """Immutable, and nothing that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Frozen):
    """One file beside the manifest."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Macs(Frozen):
    """Multiply-accumulates of one prefill of ``workload``, dense and as exported."""

    dense: int
    artifact: int
    parts: dict[str, int] = {}
    workload: Workload


class Verified(Frozen):
    """The outcome of ``comp-export verify`` on exactly these files."""

    ok: bool
    report_sha256: str


class Manifest(Frozen):
    """What the manifests of all families say; ``files`` lists everything else in the artifact."""

    version: Literal[1] = MANIFEST_VERSION
    family: str
    task: Task
    flavour: Flavour
    precision: Precision
    rounding: Rounding | None = Field(default=None, description="of weights of 4 or 8 bits")
    opset: int
    model: str = Field(description="name or path of the dense checkpoint")
    method: str | None = Field(description="pruning method; none for a dense artifact")
    rate: float = Field(ge=0, lt=1, description="share of multiply-accumulates removed")
    dense: bool
    image_processor: ImageProcessing
    macs: Macs | None
    params: int = Field(description="parameters in the graphs, tied ones counted once")
    versions: dict[str, str]
    files: tuple[FileEntry, ...]
    verified: Verified | None = None

    def save(self, directory: Path) -> None:
        """Write ``directory/manifest.json``."""
        write_text(directory / MANIFEST_NAME, self.model_dump_json(indent=1) + "\n")

    def file(self, name: str) -> FileEntry:
        """The entry of one file; ``KeyError`` when the artifact has none of that name."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise KeyError(name)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.files)


@dataclass(frozen=True)
class Artifact:
    """An artifact directory whose files are what the manifest says."""

    path: Path
    manifest: Manifest

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def describe_files(directory: Path) -> tuple[FileEntry, ...]:
    """Entries of every file in ``directory`` but the manifest, sorted by name."""
    return tuple(
        FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME
    )


def remade(verb: str) -> str:
    """What to do about a manifest that the command ``verb`` wrote, and that is wrong."""
    return f"make it again with `{verb} --force`"


def read_fields(path: Path, verb: str) -> dict[str, Any]:
    """The fields of a manifest of this version; ``verb`` is the command that makes it.

    Raises:
        CompExportError: there is none, it is no manifest, or it is of another version.
    """
    absent = f"no artifact at {path.parent}: {path.name}", f"make one with `{verb}`"
    return read_versioned(path, "a manifest", MANIFEST_VERSION, absent, remade(verb))


def check_files(
    directory: Path, files: Iterable[FileEntry], check_hashes: bool, remedy: str
) -> None:
    """Compare files with their entries.

    Raises:
        CompExportError: names the first file that is missing, truncated or changed, and the remedy.
    """
    for entry in files:
        path = directory / entry.name
        if Path(entry.name).name != entry.name:
            raise CompExportError(
                f"{directory / MANIFEST_NAME}: file name {entry.name!r}: {remedy}"
            )
        if not path.is_file():
            raise CompExportError(f"{path} is missing: {remedy}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise CompExportError(f"{path} has {size} bytes instead of {entry.bytes}: {remedy}")
        if check_hashes and sha256_of(path) != entry.sha256:
            raise CompExportError(f"{path} is corrupted (its SHA-256 differs): {remedy}")
