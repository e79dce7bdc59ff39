"""``manifest.json``: the description of an artifact, and the checks that refuse a damaged one.

This module needs neither torch, transformers nor onnx: the engine reads artifacts with it.
"""

import errno
import hashlib
import stat
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from comp.checkpoints.image_settings import ImageProcessing
from comp.errors import CompExportError
from comp.plan import Task, Workload
from comp.registry.code import resolve
from comp.registry.families import family_called
from comp.utils.files import write_text
from comp.utils.versioned_json import read_versioned

MANIFEST_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER = "tokenizer.json"
REMEDY = "export it again with `comp-export onnx --force`"
READ_BLOCK = 1 << 20  # bytes read at a time when hashing

LARGEST = 2**31 - 1  # for sizes and token ids: the range of ONNX and TensorRT
MOST = 2**62  # for bytes, parameters and multiply-accumulates

Count = Annotated[int, Field(ge=1, le=LARGEST)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST)]


def _in_no_folder(name: str) -> str:
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError("a file's name, without a folder, is wanted")
    return name


FileName = Annotated[str, Field(max_length=255), AfterValidator(_in_no_folder)]
"""The name of a file in the manifest's folder, without a directory."""
Flavour = Literal["onnxruntime", "standard"]
Computed = Literal["float32", "float16", "bfloat16"]
Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""Of weights, computation and caches; int8 and int4 apply to weights, the rest is float32."""


Rounding = Literal["nearest", "calibrated"]
"""How weights were rounded to integers."""


def computed_in(precision: Precision) -> Computed:
    """The precision of computation and caches."""
    return "float32" if precision in ("int8", "int4") else precision  # type: ignore[return-value]


class Frozen(BaseModel):
    """Base of all manifest models: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(Frozen):
    """One file in the manifest's folder; its name has no directory."""

    name: FileName
    bytes: int = Field(ge=0, le=MOST)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def _listed_once(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    seen: set[str] = set()
    for entry in files:
        if entry.name in seen or entry.name == MANIFEST_NAME:
            raise ValueError(f"{entry.name} cannot be listed, or not twice")
        seen.add(entry.name)
    return files


Files = Annotated[tuple[FileEntry, ...], AfterValidator(_listed_once)]


class TextProcessing(Frozen):
    """Tokenizer settings of transformers that ``tokenizer.json`` does not hold."""

    split_special_tokens: bool = Field(
        default=False, description="whether special tokens in a text are read as its letters"
    )
    clean_up_spaces: bool = Field(
        default=False, description="whether spaces before punctuation are taken out of answers"
    )


class Macs(Frozen):
    """Multiply-accumulates of one prefill of ``workload``, dense and as exported."""

    dense: int = Field(ge=1, le=MOST)
    artifact: int = Field(ge=0, le=MOST)
    parts: dict[str, int] = {}
    workload: Workload


class Activations(Frozen):
    """The largest activations measured in float32 before an export in float16."""

    largest: float = Field(ge=0)
    where: str = Field(description="the module that they went into or came out of")
    examples: int = Field(ge=1, description="that were tried")
    float32: tuple[str, ...] = Field(
        default=(), description="what is computed in float32 for their sake"
    )
    beyond: tuple[str, ...] = Field(
        default=(), description="modules that may overflow in float16 all the same"
    )


class Verified(Frozen):
    """The outcome of ``comp-export verify`` on exactly these files."""

    ok: bool
    report_sha256: str


class Manifest(Frozen):
    """The fields that all families share; ``files`` lists every other file of the artifact."""

    version: Literal[1] = MANIFEST_VERSION
    family: str
    task: Task
    flavour: Flavour
    precision: Precision
    rounding: Rounding | None = Field(default=None, description="of weights of 4 or 8 bits")
    opset: Count
    model: str = Field(description="name or path of the dense checkpoint")
    method: str | None = Field(description="pruning method; none for a dense artifact")
    rate: float = Field(ge=0, lt=1, description="share of multiply-accumulates removed")
    dense: bool
    image_processor: ImageProcessing
    text_processing: TextProcessing = TextProcessing()
    macs: Macs | None
    params: int = Field(
        ge=0, le=MOST, description="parameters in the graphs, tied ones counted once"
    )
    activations: Activations | None = Field(
        default=None, description="of float16; none: not measured"
    )
    versions: dict[str, str]
    files: Files
    verified: Verified | None = None

    @field_validator("family")
    @classmethod
    def _is_of_this_class(cls, name: str) -> str:
        family = family_called(name)
        if family is None or resolve(family.manifest) is not cls:
            raise ValueError(f"{name[:40]!r} has no manifest of this kind")
        return name

    @property
    @abstractmethod
    def graphs(self) -> tuple[str, ...]:
        """File names of the graphs that the export of such a model writes."""

    def save(self, directory: Path) -> None:
        """Write ``directory/manifest.json``."""
        write_text(directory / MANIFEST_NAME, self.model_dump_json(indent=1) + "\n")

    def file(self, name: str) -> FileEntry:
        """Return the entry of one file; raise ``KeyError`` if there is none of that name."""
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
        return self.path / TOKENIZER

    def graph(self, name: str) -> Path:
        """The file of a graph, such as ``vision_model``."""
        return self.path / f"{name}.onnx"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def describe_files(directory: Path) -> tuple[FileEntry, ...]:
    """Entries of every file in ``directory`` except the manifest, sorted by name."""
    return tuple(
        FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME
    )


def remade(verb: str) -> str:
    """The remedy for a broken manifest that the command ``verb`` wrote."""
    return f"make it again with `{verb} --force`"


def read_fields(path: Path, verb: str) -> dict[str, Any]:
    """Read the fields of a manifest of this version; ``verb`` is the command that writes it.

    Raises:
        CompExportError: it is missing, not a manifest, or of another version.
    """
    absent = f"no artifact at {path.parent}: {path.name}", f"make one with `{verb}`"
    return read_versioned(path, "a manifest", MANIFEST_VERSION, absent, remade(verb))


def check_files(
    directory: Path,
    files: Iterable[FileEntry],
    needed: Iterable[str],
    check_hashes: bool,
    remedy: str,
) -> None:
    """Compare files with their entries.

    Args:
        directory: the folder of the files.
        files: the entries.
        needed: names of files that must be among them.
        check_hashes: also read every file.
        remedy: appended to every error.

    Raises:
        CompExportError: names the first file that is not listed, missing, not a regular file of this
            directory, truncated or changed.
    """
    entries = {entry.name: entry for entry in files}
    for name in needed:
        if name not in entries:
            raise CompExportError(
                f"{directory / MANIFEST_NAME} does not list {name}, which the model needs: {remedy}"
            )
    for name, entry in entries.items():
        path = directory / name
        size = _size(path, remedy)
        if size != entry.bytes:
            raise CompExportError(f"{path} has {size} bytes instead of {entry.bytes}: {remedy}")
        if check_hashes and sha256_of(path) != entry.sha256:
            raise CompExportError(f"{path} is corrupted (its SHA-256 differs): {remedy}")


def _size(path: Path, remedy: str) -> int:
    """Size in bytes of a regular file that lies inside its directory."""
    try:
        status = path.stat()
        inside = path.resolve().parent == path.parent.resolve()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise CompExportError(f"{path} is missing: {remedy}") from error
        raise CompExportError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CompExportError(f"{path} is not a regular file: {remedy}")
    if not inside:
        raise CompExportError(
            f"{path} is a link that leads out of the artifact: copy the file there, or {remedy}"
        )
    return status.st_size
