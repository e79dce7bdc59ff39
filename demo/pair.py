"""The two engines of a page: those of a run, or of a server."""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Generic, Literal, TypeVar

from demo.keeping import keeping
from demo.remote.client import Remote
from demo.remote.generator import RemoteGenerator
from demo.remote.pairing import two_models
from demo.reports import NO_REPORTS, RunReports
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.manifest import Manifest, Task
from serve.artifacts import (
    BOTH,
    DEFAULT_VARIANT,
    ArtifactVariant,
    Which,
    artifacts_of,
    is_verified,
)
from serve.bench.request import perform, work_of
from serve.loading import TaskEngine, engines_of

E = TypeVar("E", bound=TaskEngine | RemoteGenerator)
WARM_UPS = 5  # runs of each engine before the page opens
WARM_UP_SECONDS = 5.0  # no further run after this
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Pair(Generic[E]):
    """The original and the compressed engine, both for one task.

    Attributes:
        name: name of the run.
        dense, compressed: the engines.
        proved: whether ``verify`` accepted both artifacts.
        reports: the run's measured accuracy and times.
        keep_factor: multiplies the keep ratios of the compressed model.
        server: address of the server that runs both; empty if they run in this process.
    """

    name: str
    dense: E
    compressed: E
    proved: bool
    reports: RunReports = NO_REPORTS
    keep_factor: float = 1.0
    server: str = ""

    @staticmethod
    def load(
        run: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        variant: ArtifactVariant = DEFAULT_VARIANT,
    ) -> "Pair[TaskEngine]":
        """Load both artifacts of a run and warm both up, so that the first request is not cold.

        Raises:
            CompExportError: as for ``serve.artifacts`` and ``serve.loading.load_engine``.
        """
        directory, directories = artifacts_of(run, variant)
        engines = engines_of(directories, device, threads, variant)
        proved = all(is_verified(path) for path in directories.values())
        reports = RunReports.read(directory.reports, variant.suffix)
        pair = Pair(directory.path.name, engines["dense"], engines["compressed"], proved, reports)
        pair.warm_up()
        return pair

    @staticmethod
    def of_server(remote: Remote, models: tuple[str, str] | None = None) -> "Pair[RemoteGenerator]":
        """Return two models of a server, which answers questions or captions.

        Args:
            remote: the server.
            models: ids of the dense and the compressed model; by default those that belong together.

        Raises:
            CompExportError: as for ``demo.remote.pairing.two_models``.
        """
        dense, compressed = two_models(remote, models)
        proved = dense.verified and compressed.verified
        return Pair(compressed.id, dense, compressed, proved, server=remote.url)

    def warm_up(self: "Pair[TaskEngine]") -> None:
        """Run both engines in turn several times, each at least once."""
        work = work_of(self.task, [], [], new_tokens=WARM_UP_TOKENS)
        start = perf_counter()
        for _ in range(WARM_UPS):
            for which in BOTH:
                perform(self.engine(which), work)
            if perf_counter() - start > WARM_UP_SECONDS:
                return

    def at(self, keep_factor: float) -> "Pair[E]":
        """Return the same engines with another factor on the keep ratios."""
        return replace(self, keep_factor=keep_factor)

    @property
    def verified(self) -> bool:
        """Whether this request was verified: both artifacts were, and run at their own keep ratios."""
        return self.proved and self.keep_factor == 1

    def macs(self, which: Which) -> int | None:
        """Multiply-accumulates of one request, at the keep factor; ``None`` if unknown."""
        manifest = self.manifests[which]
        if which == "compressed" and self.keep_factor != 1 and isinstance(manifest, LlavaManifest):
            return keeping(manifest, self.keep_factor).macs
        return manifest.macs.artifact if manifest.macs else None

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
