"""Captions of scenes: the things and their places, in words that a person would use.

A scene has several captions with the same meaning: references for captioning, texts for retrieval.
``things_score`` measures how well a caption names the things of its scene.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from comp.data.emoji_scenes.questions import PLACE_MARGIN, compose_free
from comp.data.emoji_scenes.scenes import Scene, Thing, place_things, render
from comp.data.emoji_scenes.splits import SplitSequence, split_of
from comp.data.emoji_scenes.sprites import sprites
from comp.data.example import Example

MOST_THINGS = 5
OPENINGS = ("{}.", "there is {}.", "you can see {}.", "a picture of {}.", "the picture shows {}.")


@dataclass(frozen=True)
class Captioned:
    """One image (RGB) and captions that all fit it; the first is the plainest."""

    image: Image.Image
    captions: tuple[str, ...]
    names: tuple[str, ...]


class EmojiCaptions(SplitSequence[Captioned]):
    """Scenes of one to five different things with their captions."""

    version = 3

    def __getitem__(self, index: int) -> Captioned:  # type: ignore[override]  # no slices
        scene = self.scene(index)
        image, _ = render(scene)
        names = tuple(thing.name for thing in scene.things)
        return Captioned(image, captions_of(scene), names)

    def scene(self, index: int) -> Scene:
        """Return the scene of an index, unpainted."""
        return draw_scene(self.split, self.rng(index))


def draw_scene(split: str, rng: np.random.Generator) -> Scene:
    """Draw a scene of one to five different things that belongs to the split."""
    while True:
        scene = place_things(compose_free(rng, high=MOST_THINGS), rng)
        if scene is not None and split_of(scene) == split:
            return scene


class CaptionExamples(Sequence[Example]):
    """The same scenes as examples: ``answer`` is one caption, ``answers`` are all with ``all_captions``.

    Retrieval needs a single caption, so that there are as many texts as images.
    """

    def __init__(self, split: str, size: int = 2000, all_captions: bool = False) -> None:
        self.scenes = EmojiCaptions(split, size)
        self.all_captions = all_captions

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        shown = self.scenes[index]
        answers = shown.captions if self.all_captions else ()
        one = shown.captions[index % len(shown.captions)]
        return Example(shown.image, "", one, "caption", answers)


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Return all captions of a scene: things from left to right, with places where they are clear."""
    ordered = sorted(scene.things, key=lambda thing: thing.x)
    listed = _listed([_placed(thing) for thing in ordered])
    return tuple(opening.format(listed) for opening in OPENINGS)


def article(name: str) -> str:
    """Return ``a`` or ``an``."""
    return "an" if name[0] in "aeiou" else "a"


def names_in(caption: str) -> Counter[str]:
    """Count the things that a caption names; of overlapping names, the longer one."""
    return Counter(name_pattern().findall(" ".join(caption.lower().split())))


def things_score(caption: str, names: Sequence[str]) -> tuple[int, int, int]:
    """Return ``(named and present, named, present)`` numbers of things, counting copies.

    The first over the third is the recall of things, the first over the second the precision.
    """
    named, there = names_in(caption), Counter(names)
    return sum((named & there).values()), sum(named.values()), sum(there.values())


def _placed(thing: Thing) -> str:
    named = f"{article(thing.name)} {thing.name}"
    return f"{named} at the {thing.place}" if thing.cell_margin() >= PLACE_MARGIN else named


def _listed(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


@cache
def name_pattern() -> re.Pattern[str]:
    """Return a pattern that matches names of things; of overlapping ones, the longer."""
    names = sorted(sprites(), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b", re.IGNORECASE)
