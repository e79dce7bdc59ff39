"""What ``verify`` needs of a family: its models in torch, and the forms of its artifacts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from comp.plan import Place
from export.artifact.manifest import Precision
from export.verify.compare import Answered, Runner


class Examples(Protocol):
    """A data set of the family's task."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class RuntimeVariant:
    """A way to run an artifact; ``load`` makes it ready.

    ``bfloat16``: it is computed so, whatever its precision says.
    """

    name: str
    directory: Path
    dense: bool
    precision: Precision
    load: Callable[[], Runner]
    bfloat16: bool = False


@dataclass(frozen=True)
class Skipped:
    """A form that cannot run here."""

    name: str
    reason: str


@dataclass(frozen=True)
class Questions:
    """The first ``count`` examples as a family's runners take them, made when asked for."""

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
        """None where the dense model is gone: then only ``slim_runner`` can be asked for."""
        ...

    @property
    def slim(self) -> Model: ...

    @property
    def places(self) -> tuple[Place, ...]:
        """Where tokens are dropped, in the order of what runners keep."""
        ...

    def prepare(self, example: Any) -> Any:
        """A question as the runners take it."""
        ...

    def dense_runner(self) -> Runner:
        """The dense model as it was before pruning. Not valid after ``masked_runner``."""
        ...

    def slim_runner(self) -> Runner: ...

    def masked_runner(self) -> Runner:
        """The dense model with the slim one's weights in their places and the rest masked."""
        ...

    def conclude(self, answers: list[Answered]) -> list[Answered]:
        """The same answers with what can only be decided when all are known (a ranking)."""
        ...
