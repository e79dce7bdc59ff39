"""EmojiScenes: procedural visual question answering, deterministic by (split, index).

Index ``i`` of a split asks a question of kind ``i mod 12``. The splits are disjoint by construction:
a hash of the layout (which thing in which cell of the grid) decides the only split that a scene may
belong to, so no layout of ``test`` is ever seen in ``train``.
"""

import numpy as np

from comp.data.emoji_scenes.questions import KINDS, Question
from comp.data.emoji_scenes.scenes import Scene, place_things, render
from comp.data.emoji_scenes.splits import SplitSequence, split_of
from comp.data.example import Example


class EmojiScenes(SplitSequence[Example]):
    """Visual questions about scenes of one to seven things."""

    version = 1

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        scene, question = self.scene(index)
        image, _ = render(scene)
        return Example(image, question.text, question.answer, question.kind)

    def scene(self, index: int) -> tuple[Scene, Question]:
        """Return the unpainted scene and the question of an index."""
        return draw(self.split, list(KINDS)[index % len(KINDS)], self.rng(index))


def draw(split: str, kind: str, rng: np.random.Generator) -> tuple[Scene, Question]:
    """Draw scenes until one belongs to the split and allows the question."""
    while True:
        scene = place_things(KINDS[kind].compose(rng), rng)
        if scene is None or split_of(scene) != split:
            continue
        question = KINDS[kind].ask(scene, rng)
        if question is not None:
            return scene, question
