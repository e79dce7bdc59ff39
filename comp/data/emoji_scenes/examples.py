"""EmojiScenes: procedural visual question answering, deterministic by (split, index).

Index ``i`` of a split asks a question of kind ``i mod 12``. The splits are disjoint by construction:
a hash of the layout (which thing in which cell of the grid) decides the only split that a scene may
belong to, so no layout of ``test`` is ever seen in ``train``.
"""

import numpy as np

from comp.data.emoji_scenes.questions import KINDS, Question
from comp.data.emoji_scenes.scenes import SQUARE, Scene, place_things, render
from comp.data.emoji_scenes.splits import SplitSequence, split_of
from comp.data.example import Example


class EmojiScenes(SplitSequence[Example]):
    """Visual questions about scenes of one to seven things.

    Args:
        split, size: as of every split.
        picture: width and height of the scenes.
    """

    version = 1

    def __init__(self, split: str, size: int = 2000, picture: tuple[int, int] = SQUARE) -> None:
        super().__init__(split, size)
        self.picture = picture

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        scene, question = self.scene(index)
        image, _ = render(scene)
        return Example(image, question.text, question.answer, question.kind)

    def scene(self, index: int) -> tuple[Scene, Question]:
        """Return the unpainted scene and the question of an index."""
        kind = list(KINDS)[index % len(KINDS)]
        return draw(self.split, kind, self.rng(index), self.picture)


def draw(
    split: str, kind: str, rng: np.random.Generator, picture: tuple[int, int] = SQUARE
) -> tuple[Scene, Question]:
    """Draw scenes until one belongs to the split and allows the question."""
    while True:
        scene = place_things(KINDS[kind].compose(rng), rng, picture)
        if scene is None or split_of(scene) != split:
            continue
        question = KINDS[kind].ask(scene, rng)
        if question is not None:
            return scene, question
