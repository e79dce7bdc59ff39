"""Splits of EmojiScenes: an example is a function of (split, index); no layout is in two splits."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from comp.data.emoji_scenes.scenes import Scene

SPLITS = ("train", "validation", "test")
E_co = TypeVar("E_co", covariant=True)


def split_of(scene: Scene) -> str:
    """Return the one split that a scene may belong to: a tenth each for test and validation."""
    residue = scene.signature() % 10
    return {0: "test", 1: "validation"}.get(residue, "train")


class SplitSequence(Sequence[E_co]):
    """A split of drawn examples, without end: any index gives an example. Loops take ``len()`` of them.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: number of examples that ``len`` reports.

    Raises:
        ValueError: for an unknown split.
    """

    version: ClassVar[int]  # part of the seed: separates the streams of different kinds of examples

    def __init__(self, split: str, size: int = 2000) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[E_co]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def __getitem__(self, index: int) -> E_co:  # type: ignore[override]  # no slices
        """Return the example of an index; raise ``IndexError`` for a negative one."""

    def rng(self, index: int) -> np.random.Generator:
        """Return the random generator of the example of an index."""
        if index < 0:
            raise IndexError(index)
        return np.random.default_rng([self.version, SPLITS.index(self.split), index])
