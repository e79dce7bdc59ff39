"""The interface of a family to ``verify``: its torch models, and the variants of its artifacts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from export.artifact.manifest import Artifact, Precision
from export.proof.compare import Runner


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

    @classmethod
    def of(
        cls, name: str, artifact: Artifact, load: Callable[[], Runner], bfloat16: bool = False
    ) -> "RuntimeVariant":
        """A variant of an ONNX artifact."""
        manifest = artifact.manifest
        return cls(name, artifact.path, manifest.dense, manifest.precision, load, bfloat16)


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
