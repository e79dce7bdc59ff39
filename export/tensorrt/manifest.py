"""``manifest.json`` of an engine directory: the engines, and the machines that run them.

This module needs no TensorRT: engines that cannot run are refused before anything is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from comp.errors import CompExportError
from comp.utils.files import write_text
from comp.utils.versioned_json import validated
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.load import manifest_class
from export.artifact.manifest import (
    LARGEST,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    TOKENIZER,
    Count,
    FileName,
    Files,
    Frozen,
    Manifest,
    Verified,
    check_files,
    read_fields,
    remade,
)
from export.tensorrt.attention_report import BlockReport
from export.tensorrt.check import check_engines
from export.tensorrt.library import ModuleName
from export.tensorrt.limits import Limits

VERB = "comp-export tensorrt"
M = TypeVar("M", bound=Manifest)
REMEDY = f"build it again with `{VERB} --force`"
Dim = Annotated[int, Field(ge=0, le=LARGEST)]
Shapes = tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[Dim, ...]]  # smallest, usual, largest


class EngineProfile(Frozen):
    """One optimisation profile."""

    name: str
    shapes: dict[str, Shapes] = Field(description="of each input: smallest, usual, largest")


class EngineEntry(Frozen):
    """One engine file."""

    file: FileName
    graph: FileName = Field(description="the graph of the ONNX artifact it was built from")
    profiles: tuple[EngineProfile, ...]
    blocks: tuple[BlockReport, ...] = Field(description="attention and caches of each block")


def _of_its_family(fields: Any) -> Any:
    """Read the manifest of an artifact as the class of its family."""
    return manifest_class(fields).model_validate(fields) if isinstance(fields, dict) else fields


class EngineManifest(Frozen):
    """``manifest.json`` of an engine directory."""

    version: Literal[1] = MANIFEST_VERSION
    kind: Literal["tensorrt"] = "tensorrt"
    module: ModuleName
    module_version: str
    compute_capabilities: tuple[str, ...]
    weights: Literal["embedded", "streamed", "stripped"]
    limits: Limits
    cache_capacities: tuple[Count, ...] = Field(description="places in the caches of each segment")
    engines: dict[str, EngineEntry]
    artifact: Annotated[SerializeAsAny[Manifest], BeforeValidator(_of_its_family)] = Field(
        description="the ONNX artifact that the engines were built from"
    )
    artifact_directory: FileName = Field(description="its directory's name, in the same run")
    files: Files
    verified: Verified | None = None

    def save(self, directory: Path) -> None:
        """Write ``directory/manifest.json``."""
        write_text(directory / MANIFEST_NAME, self.model_dump_json(indent=1) + "\n")

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.files)

    @property
    def llava(self) -> LlavaManifest:
        """The manifest of the model, if it is a LLaVA; otherwise raises as ``as_artifact``."""
        return self.as_artifact(LlavaManifest)

    def as_artifact(self, kind: type[M]) -> M:
        """The model's manifest as a class, with the files of the engines.

        Raises:
            CompExportError: it is of another family.
        """
        if not isinstance(self.artifact, kind):
            raise CompExportError(
                f"these are engines of a {self.artifact.family} model, and this runs others: pass "
                "another run"
            )
        return self.artifact.model_copy(update={"files": self.files, "verified": self.verified})

    def check_runs(self, module: ModuleName, version: str, capability: str | None) -> None:
        """Refuse engines that cannot run on this machine.

        Args:
            module: name of the installed TensorRT.
            version: its version.
            capability: compute capability of the GPU, if there is one.

        Raises:
            CompExportError: names the difference and how to rebuild.
        """
        built_for = ", ".join(self.compute_capabilities)
        if capability is None:
            raise CompExportError(
                f"the engines run on an NVIDIA GPU (compute capability {built_for}), and there is "
                "none here: use --backend onnxruntime"
            )
        if capability not in self.compute_capabilities:
            raise CompExportError(
                f"the engines were built for compute capability {built_for}, this GPU has "
                f"{capability}: build again with `{VERB} --force --compute-capability {capability}`"
            )
        if (module, version) != (self.module, self.module_version):
            raise CompExportError(
                f"the engines were built by {self.module} {self.module_version}, here is {module} "
                f"{version}: install that version, or {REMEDY}"
            )


@dataclass(frozen=True)
class Engines:
    """An engine directory whose files match the manifest."""

    path: Path
    manifest: EngineManifest

    def file(self, name: str) -> Path:
        """The file of one engine."""
        return self.path / self.manifest.engines[name].file

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    @property
    def artifact(self) -> Path:
        """The ONNX artifact; needed only if weights were stripped."""
        return self.path.parent / self.manifest.artifact_directory


def read_engine_manifest(directory: Path) -> EngineManifest:
    """Read the manifest without checking the other files.

    Raises:
        CompExportError: it is missing, or of another kind or version.
    """
    path = directory / MANIFEST_NAME
    return validated(EngineManifest, read_fields(path, VERB), path, remade(VERB))


def load_engines(directory: Path, check_hashes: bool = True) -> Engines:
    """Open an engine directory; refuse it if its files do not match the manifest.

    Raises:
        CompExportError: names the first file that is missing, truncated or changed, or the engine whose
            inputs are not those of the model.
    """
    manifest = read_engine_manifest(directory)
    check_engines(manifest, directory / MANIFEST_NAME, REMEDY)
    needed = (*(entry.file for entry in manifest.engines.values()), TOKENIZER)
    check_files(directory, manifest.files, needed, check_hashes, REMEDY)
    return Engines(directory, manifest)
