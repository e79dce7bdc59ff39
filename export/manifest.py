"""``manifest.json``: what an artifact is, and the means to refuse a damaged one.

Nothing here needs torch, transformers or onnx: the engine reads artifacts with it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comp.errors import CompExportError
from comp.files import write_text
from comp.plan import DropPlan, Workload

MANIFEST_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
REMEDY = "export it again with `comp-export onnx --force`"
READ_BLOCK = 1 << 20  # bytes read at a time when hashing

M = TypeVar("M", bound=BaseModel)
Flavour = Literal["onnxruntime", "standard"]
Precision = Literal["float32", "float16", "bfloat16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """One file beside the manifest."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DecoderShape(_Frozen):
    """The decoder graph: what its caches look like and where tokens are dropped."""

    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    num_attention_heads: tuple[int, ...] = Field(description="query heads of each layer")
    num_key_value_heads: tuple[int, ...] = Field(
        description="key/value heads of each layer's cache"
    )
    intermediate_size: tuple[int, ...] = Field(description="FFN width of each layer")
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    drops: tuple[DropPlan, ...] = ()


class VisionShape(_Frozen):
    """The vision encoder graph: ``pixel_values [I, C, S, S]`` in, ``image_tokens`` features out."""

    image_size: int = Field(ge=1)
    patch_size: int = Field(ge=1)
    num_channels: int = 3
    image_tokens: int = Field(ge=1, description="tokens an image becomes")
    select_strategy: Literal["default", "full"] = Field(
        "default", description="whether [CLS] is among the tokens (full: first) or not"
    )


class ImageSize(_Frozen):
    """Either the shorter edge, or height and width."""

    shortest_edge: int | None = None
    height: int | None = None
    width: int | None = None


class CropSize(_Frozen):
    height: int
    width: int


class ImageProcessing(_Frozen):
    """The image processor's settings, named as Hugging Face names them."""

    do_convert_rgb: bool = True
    do_pad: bool = False
    do_resize: bool = True
    size: ImageSize
    resample: int = 3
    do_center_crop: bool = True
    crop_size: CropSize | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


class SpecialTokens(_Frozen):
    """Tokens the engine must know; a leading BOS comes from ``tokenizer.json`` when ``add_bos``."""

    image_token: str
    image_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    add_bos: bool


class Macs(_Frozen):
    """Multiply-accumulates of one prefill of ``workload``, dense and as exported."""

    dense: int
    artifact: int
    parts: dict[str, int] = {}
    workload: Workload


class Verified(_Frozen):
    """The outcome of ``comp-export verify`` on exactly these files."""

    ok: bool
    report_sha256: str


class Manifest(_Frozen):
    """``manifest.json``; ``files`` lists everything beside it that belongs to the artifact."""

    version: Literal[1] = MANIFEST_VERSION
    family: str
    flavour: Flavour
    precision: Precision
    opset: int
    model: str = Field(description="name or path of the dense checkpoint")
    method: str | None = Field(description="pruning method; none for a dense artifact")
    rate: float = Field(ge=0, lt=1, description="share of multiply-accumulates removed")
    dense: bool
    decoder: DecoderShape
    vision: VisionShape
    image_processor: ImageProcessing
    tokens: SpecialTokens
    prompt_template: str = Field(description="the prompt of one image; replace '{prompt}'")
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
    def vision_encoder(self) -> Path:
        return self.path / "vision_encoder.onnx"

    @property
    def embed_tokens(self) -> Path:
        return self.path / "embed_tokens.onnx"

    @property
    def decoder_model(self) -> Path:
        return self.path / "decoder_model.onnx"

    @property
    def decoder_in_place(self) -> Path:
        """The decoder with caches of fixed size; of the standard flavour only."""
        return self.path / "decoder_in_place.onnx"

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


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` without looking at the other files.

    Raises:
        CompExportError: when there is none, it is no manifest, or it is of another version.
    """
    return read_model(directory / MANIFEST_NAME, Manifest, "comp-export onnx")


def read_model(path: Path, kind: type[M], verb: str) -> M:
    """Read a manifest of one kind; ``verb`` is the command that makes it.

    Raises:
        CompExportError: as ``read_manifest``.
    """
    remedy = f"make it again with `{verb} --force`"
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompExportError(
            f"no artifact at {path.parent}: {path.name}: {error.strerror}; make one with `{verb}`"
        ) from error
    except ValueError as error:
        raise CompExportError(f"{path} is not JSON ({error}): {remedy}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != MANIFEST_VERSION:
        raise CompExportError(
            f"{path} is a manifest of version {version!r}, this release reads version "
            f"{MANIFEST_VERSION}: {remedy}"
        )
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CompExportError(f"{path}: {where}: {first['msg']}: {remedy}") from error


def kind_of(directory: Path) -> Literal["onnx", "tensorrt"]:
    """What a directory's ``manifest.json`` describes; graphs where it says nothing."""
    try:
        found = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "onnx"  # whoever opens it next says what is wrong
    is_engines = isinstance(found, dict) and found.get("kind") == "tensorrt"
    return "tensorrt" if is_engines else "onnx"


def load_artifact(directory: Path, check_hashes: bool = True) -> Artifact:
    """Open an artifact, refusing one whose files are not what the manifest says.

    Args:
        directory: holds ``manifest.json`` and the files it lists.
        check_hashes: also read every file and compare its SHA-256 (sizes are always compared).

    Raises:
        CompExportError: names the first file that is missing, truncated or changed.
    """
    manifest = read_manifest(directory)
    check_files(directory, manifest.files, check_hashes, REMEDY)
    return Artifact(directory, manifest)


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


def mark_verified(directory: Path, verified: Verified) -> Manifest:
    """Record a verification in the manifest; returns the new one."""
    manifest = read_manifest(directory).model_copy(update={"verified": verified})
    manifest.save(directory)
    return manifest
