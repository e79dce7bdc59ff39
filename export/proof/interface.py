"""The interface of a family to ``verify``: its torch models, and the variants of its artifacts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from comp.plan import Place
from export.artifact.manifest import Precision
from export.proof.compare import Answered, Runner


class Examples(Protocol):
    """A data set of the family's task."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class RuntimeVariant:
    """One way to run an artifact; ``load`` loads it.

    ``bfloat16``: whether it computes in bfloat16, for any precision of the artifact.
    """

    name: str
    directory: Path
    dense: bool
    precision: Precision
    load: Callable[[], Runner]
    bfloat16: bool = False


@dataclass(frozen=True)
class Skipped:
    """A variant that cannot run here."""

    name: str
    reason: str


@dataclass(frozen=True)
class Questions:
    """The first ``count`` examples as a family's runners take them, prepared when needed."""

    examples: Examples
    count: int
    prepare: Callable[[Any], Any]

    def __len__(self) -> int:
        return min(self.count, len(self.examples))

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self.prepare(self.examples[index])


class Model(Protocol):
    """One of the torch models."""

    @property
    def model(self) -> torch.nn.Module: ...


class TorchReference(Protocol):
    """The torch models of a run."""

    @property
    def dense(self) -> Model | None:
        """``None`` if the dense model is gone: then only ``slim_runner`` is available."""
        ...

    @property
    def slim(self) -> Model: ...

    @property
    def places(self) -> tuple[Place, ...]:
        """Drop places, in the order of the runners' kept indices."""
        ...

    def prepare(self, example: Any) -> Any:
        """Prepare an example for the runners."""
        ...

    def dense_runner(self) -> Runner:
        """The dense model. Not valid after ``masked_runner``."""
        ...

    def slim_runner(self) -> Runner: ...

    def masked_runner(self) -> Runner:
        """The dense model with the slim model's weights in their places and everything else masked."""
        ...

    def conclude(self, answers: list[Answered]) -> list[Answered]:
        """Add what can only be decided when all answers are known (a ranking)."""
        ...
