"""Example pictures of the page, from EmojiScenes' test split, with known contents."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from comp.data.emoji_scenes.captions import Captioned, CaptionExamples, EmojiCaptions, article
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.scenes import Scene, render
from comp.data.emoji_scenes.statements import COUNT as COUNT_WORDS
from comp.data.emoji_scenes.statements import PRESENCE, EmojiStatements

COUNT = 6
QUESTIONS_EACH = 6
FEWEST_THINGS, MOST_THINGS = 3, 6
# The order in which kinds are offered: common questions first.
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
        """The right answer, if the question is one of the known ones."""
        return dict(self.questions).get(question.strip())


@cache
def page_examples() -> tuple[PageExample, ...]:
    """Scenes of the test split with enough objects to ask about; always the same ones."""
    scenes = EmojiScenes("test")
    examples: list[PageExample] = []
    index = 0
    while len(examples) < COUNT:
        scene, _ = scenes.scene(index)
        if FEWEST_THINGS <= len(scene.things) <= MOST_THINGS:
            example = PageExample(render(scene)[0], _questions(scene, index))
            if len(example.questions) == QUESTIONS_EACH:
                examples.append(example)
        index += 1
    return tuple(examples)


def _questions(scene: Scene, index: int) -> tuple[tuple[str, str], ...]:
    """One question of each kind that suits the scene, up to ``QUESTIONS_EACH``."""
    rng = np.random.default_rng(index)
    questions = []
    for kind in KIND_ORDER:
        question = KINDS[kind].ask(scene, rng)
        if question is not None:
            questions.append((question.text, question.answer))
    return tuple(questions[:QUESTIONS_EACH])


BEGINNINGS = ("there is", "you can see", "a picture of", "the picture shows")


@cache
def page_captions() -> tuple[Captioned, ...]:
    """Pictures to describe, with enough objects."""
    captions = EmojiCaptions("test")
    chosen: list[Captioned] = []
    index = 0
    while len(chosen) < COUNT:
        if len(captions.scene(index).things) >= FEWEST_THINGS:
            chosen.append(captions[index])
        index += 1
    return tuple(chosen)


# Of all five kinds, both true and false.
PAIRS = (0, 6, 2, 8, 4, 5)


@dataclass(frozen=True)
class PagePair:
    """Two pictures and ``(statement, truth)`` pairs about both."""

    images: tuple[Image.Image, Image.Image]
    statements: tuple[tuple[str, bool], ...]

    def truth_of(self, statement: str) -> bool | None:
        """Whether the statement is true, if it is one of the known ones."""
        return dict(self.statements).get(statement.strip())

    @property
    def side_by_side(self) -> Image.Image:
        """Both pictures in one, for a list of pairs."""
        first, second = self.images
        gap = first.width // 16
        both = Image.new("RGB", (first.width + gap + second.width, first.height), "white")
        both.paste(first, (0, 0))
        both.paste(second, (first.width + gap, 0))
        return both


@cache
def page_pairs() -> tuple[PagePair, ...]:
    """Pairs with the statement they were drawn for, and more statements."""
    pairs = EmojiStatements("test")
    page = []
    for index in PAIRS:
        scenes, statement = pairs.scenes(index)
        first, second = (render(scene)[0] for scene in scenes)
        known = {statement.text: statement.answer, **statements_about(scenes)}
        page.append(PagePair((first, second), tuple(known.items())))
    return tuple(page)


def statements_about(scenes: tuple[Scene, Scene]) -> dict[str, bool]:
    """Statements about differences and similarities of two scenes, and whether each is true.

    One is about an object in only one picture, one about an object in both or in neither, if there is one;
    one is about the number of an object.
    """
    first, second = ([thing.name for thing in scene.things] for scene in scenes)
    alone = sorted(set(first) ^ set(second))
    shared = sorted(set(first) & set(second))
    statements: dict[str, bool] = {}
    if alone:
        named = f"{article(alone[0])} {alone[0]}"
        statements[PRESENCE[0].format(named)] = True
        named = f"{article(alone[-1])} {alone[-1]}"
        statements[PRESENCE[1].format(named)] = False
    if shared:
        named = f"{article(shared[0])} {shared[0]}"
        statements[PRESENCE[0].format(named)] = False
        often = first.count(shared[-1]), second.count(shared[-1])
        statements[COUNT_WORDS[1].format(shared[-1])] = often[0] == often[1]
    return statements


GALLERY = 24
SHORT_THINGS = 3  # so that captions stay short


@dataclass(frozen=True)
class PageGallery:
    """Pictures to search, each with its caption."""

    pictures: tuple[Image.Image, ...]
    captions: tuple[str, ...]

    def place_of(self, caption: str) -> int | None:
        """The index of a caption's picture, if the caption is one of the known ones."""
        known = {text: place for place, text in enumerate(self.captions)}
        return known.get(" ".join(caption.split()))


@cache
def page_gallery() -> PageGallery:
    """Pictures of few objects with their captions."""
    examples, scenes = CaptionExamples("test"), EmojiCaptions("test")
    places: list[int] = []
    index = 0
    while len(places) < GALLERY:
        if 2 <= len(scenes.scene(index).things) <= SHORT_THINGS:
            places.append(index)
        index += 1
    chosen = [examples[place] for place in places]
    return PageGallery(tuple(each.image for each in chosen), tuple(each.answer for each in chosen))
