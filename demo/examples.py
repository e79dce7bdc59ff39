"""Pictures to start from, each with questions whose answers are known."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from comp.data.emoji_scenes import EmojiScenes
from comp.data.questions import KINDS
from comp.data.scenes import Scene, render

COUNT = 6
QUESTIONS_EACH = 6
FEWEST_THINGS, MOST_THINGS = 3, 6
# The order in which kinds are offered: what people ask first comes first.
KIND_ORDER = (
    "at",
    "where",
    "extreme",
    "size",
    "relation",
    "more",
    "odd",
    "count_category",
    "exists",
)
GENERAL_QUESTIONS = (
    "what is at the top?",
    "what is the largest thing?",
    "how many animals are there?",
    "which things are in the picture?",
)


@dataclass(frozen=True)
class PageExample:
    """A picture and ``(question, answer)`` pairs about it."""

    image: Image.Image
    questions: tuple[tuple[str, str], ...]

    def answer_to(self, question: str) -> str | None:
        """The right answer, where the question is one of the known ones."""
        return dict(self.questions).get(question.strip())


@cache
def page_examples() -> tuple[PageExample, ...]:
    """Scenes of the test split with enough in them to ask about; the same ones every time."""
    scenes = EmojiScenes("test")
    found: list[PageExample] = []
    index = 0
    while len(found) < COUNT:
        scene, _ = scenes.scene(index)
        if FEWEST_THINGS <= len(scene.things) <= MOST_THINGS:
            example = PageExample(render(scene)[0], _questions(scene, index))
            if len(example.questions) == QUESTIONS_EACH:
                found.append(example)
        index += 1
    return tuple(found)


def _questions(scene: Scene, index: int) -> tuple[tuple[str, str], ...]:
    """One question of each kind that can be asked of the scene, up to ``QUESTIONS_EACH``."""
    rng = np.random.default_rng(index)
    asked = []
    for kind in KIND_ORDER:
        question = KINDS[kind].ask(scene, rng)
        if question is not None:
            asked.append((question.text, question.answer))
    return tuple(asked[:QUESTIONS_EACH])
