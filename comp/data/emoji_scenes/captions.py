"""Captions of scenes: what stands where, in words a person would use.

A scene has several captions that say the same: references for captioning, texts for retrieval. How
well a caption names the things of its scene is ``things_score``.
"""

import re
from collections import Counter
from collections.abc import Sequence
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
        """The scene of an index, unpainted."""
        return draw_scene(self.split, self.rng(index))


def draw_scene(split: str, rng: np.random.Generator) -> Scene:
    """A scene of one to five different things that belongs to the split."""
    while True:
        scene = place_things(compose_free(rng, high=MOST_THINGS), rng)
        if scene is not None and split_of(scene) == split:
            return scene


class CaptionExamples(Sequence[Example]):
    """The same scenes as examples: the answer is one of the captions, ``answers`` are all, if wanted.

    Retrieval wants one, so that as many texts as images compete.
    """

    def __init__(self, split: str, size: int = 2000, all_captions: bool = False) -> None:
        self.scenes = EmojiCaptions(split, size)
        self.all_captions = all_captions

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        shown = self.scenes[index]
        answers = shown.captions if self.all_captions else ()
        one = shown.captions[index % len(shown.captions)]
        return Example(shown.image, "", one, "caption", answers)


def captions_of(scene: Scene) -> tuple[str, ...]:
    """All captions of a scene: things from left to right, each with its place where that is clear."""
    ordered = sorted(scene.things, key=lambda thing: thing.x)
    listed = _listed([_placed(thing) for thing in ordered])
    return tuple(opening.format(listed) for opening in OPENINGS)


def article(name: str) -> str:
    """``a`` or ``an``."""
    return "an" if name[0] in "aeiou" else "a"


def names_in(caption: str) -> Counter[str]:
    """The things that a caption names; of overlapping names the longer one counts."""
    return Counter(name_pattern().findall(" ".join(caption.lower().split())))


def things_score(caption: str, names: Sequence[str]) -> tuple[int, int, int]:
    """``(named and there, named, there)``, counted with copies.

    The first over the last is the share of things named right; the first over the second says how
    much of what is named is there.
    """
    said, there = names_in(caption), Counter(names)
    return sum((said & there).values()), sum(said.values()), sum(there.values())


def _placed(thing: Thing) -> str:
    named = f"{article(thing.name)} {thing.name}"
    return f"{named} at the {thing.place}" if thing.cell_margin() >= PLACE_MARGIN else named


def _listed(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


@cache
def name_pattern() -> re.Pattern[str]:
    """Finds names of things; of overlapping ones the longer."""
    names = sorted(sprites(), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b", re.IGNORECASE)
