"""The torch models of a run that artifacts are compared with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from comp.adapter import FamilyAdapter
from comp.checkpoints.model_size import is_streamed
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.plan import Place, PruningPlan
from comp.registry.families import family_called
from comp.tokens.dictionary import attach_dictionary
from export.artifact.manifest import Artifact
from export.proof.compare import Answered, Runner
from export.proof.encoder_runtimes import ranked
from export.proof.masked_torch import fill_kept, masks_of

A = TypeVar("A", bound=FamilyAdapter)


@dataclass(frozen=True)
class TorchReference(ABC, Generic[A]):
    """The torch models of a run, in float32.

    Attributes:
        dense: ``None`` if the dense model is gone: then only ``slim_runner`` is available.
        slim: of the run.
        plan: of the run.
        artifact: any one of the run.
    """

    dense: A | None
    slim: A
    plan: PruningPlan
    artifact: Artifact

    @classmethod
    def load(
        cls, dense: Path | None, slim: Path, plan: PruningPlan, artifact: Artifact, device: str
    ) -> "TorchReference[A]":
        """Load both checkpoints; on a CPU the decoder of a large LLaVA is streamed from its files.

        Raises:
            CompExportError: one cannot be loaded, or is of another family than the artifact.
        """
        before = None if dense is None else _load(dense, artifact, device)
        return cls(before, _load(slim, artifact, device), plan, artifact)

    @abstractmethod
    def runner(self, adapter: A, plan: PruningPlan | None, masks: Masks | None) -> Runner:
        """A model with the token drops of a plan, and with masks."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Drop places, in the order of the runners' kept indices."""
        return tuple(drop.place for drop in self.plan.drops)

    def prepare(self, example: Any) -> Any:
        """Prepare an example for the runners."""
        return (self.dense or self.slim).collate([example])

    def dense_runner(self) -> Runner:
        """The dense model. Not valid after ``masked_runner``."""
        assert self.dense is not None
        return self.runner(self.dense, None, None)

    def slim_runner(self) -> Runner:
        return self.runner(self.slim, self.plan, None)

    def masked_runner(self) -> Runner:
        """The dense model with the slim model's weights in their places and everything else masked."""
        assert self.dense is not None
        attach_dictionary(self.dense.model, self.plan.drops)
        fill_kept(self.dense, self.slim, self.dense.cuts(self.plan))
        return self.runner(self.dense, self.plan, masks_of(self.dense, self.plan))

    def conclude(self, answers: list[Answered]) -> list[Answered]:
        """Retrieval: add the nearest text of each image and the nearest image of each text."""
        return ranked(answers) if self.artifact.manifest.task == "retrieval" else answers


def _load(directory: Path, artifact: Artifact, device: str) -> Any:
    family = family_called(artifact.manifest.family)
    assert family is not None  # whose manifest was read
    streamed = family.streams and device == "cpu" and is_streamed(directory)
    adapter = load_adapter(directory, device, streamed=streamed)
    if adapter.name != family.name:
        raise CompExportError(
            f"{directory} is a {adapter.name} model, and the artifact is of a {family.name} model: pass "
            "another run"
        )
    return adapter
