"""EmojiScenes: procedural visual question answering, deterministic by (split, index).

Index ``i`` of a split asks a question of kind ``i mod 12``. The splits are disjoint by construction:
a hash of the layout (which thing in which cell of the grid) decides the only split that a scene may
belong to, so no layout of ``test`` is ever seen in ``train``.
"""

from collections.abc import Sequence

import numpy as np

from comp.data.example import Example
from comp.data.questions import KINDS, Question
from comp.data.scenes import Scene, place_things, render

__all__ = ["SPLITS", "EmojiScenes", "Example", "draw", "split_of"]

VERSION = 1
SPLITS = ("train", "validation", "test")


class EmojiScenes(Sequence[Example]):
    """An endless (``train``) or as-long-as-you-like split of visual questions.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: how many examples ``len`` reports; any index may be asked for.

    Raises:
        ValueError: for an unknown split.
    """

    def __init__(self, split: str, size: int = 2000) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        scene, question = self.scene(index)
        image, _ = render(scene)
        return Example(image, question.text, question.answer, question.kind)

    def scene(self, index: int) -> tuple[Scene, Question]:
        """The scene and the question of an index, unpainted."""
        if index < 0:
            raise IndexError(index)
        rng = np.random.default_rng([VERSION, SPLITS.index(self.split), index])
        return draw(self.split, list(KINDS)[index % len(KINDS)], rng)


def split_of(scene: Scene) -> str:
    """The one split a scene may belong to: a tenth each for test and validation."""
    residue = scene.signature() % 10
    return {0: "test", 1: "validation"}.get(residue, "train")


def draw(split: str, kind: str, rng: np.random.Generator) -> tuple[Scene, Question]:
    """Draw scenes until one belongs to the split and allows the question."""
    while True:
        scene = place_things(KINDS[kind].compose(rng), rng)
        if scene is None or split_of(scene) != split:
            continue
        question = KINDS[kind].ask(scene, rng)
        if question is not None:
            return scene, question
