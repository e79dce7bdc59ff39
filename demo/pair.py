"""Load the two engines of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from export.artifact.llava_manifest import LlavaManifest
from export.artifact.manifest import Manifest, Task
from serve.artifacts import DEFAULT_VARIANT, ArtifactVariant, Which, artifacts_of, is_verified
from serve.bench.request import perform, work_of
from serve.loading import TaskEngine, engines_of

E = TypeVar("E", bound=TaskEngine)


@dataclass(frozen=True)
class Pair(Generic[E]):
    """The original and the compressed engine, both for one task."""

    name: str
    dense: E
    compressed: E
    verified: bool

    @staticmethod
    def load(
        run: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        variant: ArtifactVariant = DEFAULT_VARIANT,
    ) -> "Pair[TaskEngine]":
        """Load both artifacts of a run and run each once, so that the first request is not cold.

        Raises:
            CompExportError: as for ``serve.artifacts`` and ``serve.loading.load_engine``.
        """
        directory, directories = artifacts_of(run, variant)
        engines = engines_of(directories, device, threads, variant)
        verified = all(is_verified(path) for path in directories.values())
        pair = Pair(directory.path.name, engines["dense"], engines["compressed"], verified)
        work = work_of(pair.task, [], [], new_tokens=2)
        for engine in engines.values():
            perform(engine, work)
        return pair

    @property
    def task(self) -> Task:
        return self.compressed.manifest.task

    @property
    def manifests(self) -> dict[Which, Manifest]:
        return {"dense": self.dense.manifest, "compressed": self.compressed.manifest}

    @property
    def can_scale(self) -> bool:
        """Whether the compressed artifact supports a factor on its keep ratios."""
        manifest = self.compressed.manifest
        return (
            isinstance(manifest, LlavaManifest)
            and bool(manifest.decoder.drops)
            and manifest.flavour == "onnxruntime"
        )

    def engine(self, which: Which) -> E:
        return self.dense if which == "dense" else self.compressed
