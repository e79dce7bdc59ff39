"""Statements about two scenes, true or false: EmojiScenes in the style of NLVR2.

Every kind compares the pictures, so that neither a picture nor the words alone give the answer: the
content of one picture, and every wording, is equally likely under "true" and "false". Both pictures belong
to the split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from comp.data.emoji_scenes.captions import article
from comp.data.emoji_scenes.questions import AXIS_MARGIN, PLACE_MARGIN
from comp.data.emoji_scenes.scenes import PLACES, Scene, Thing, place_things, render
from comp.data.emoji_scenes.splits import SplitSequence, split_of
from comp.data.emoji_scenes.sprites import names_by_category, sprites
from comp.data.example import PairExample

MOST_THINGS = 5
MOST_COPIES = 3
# Wordings for pictures that differ, and for pictures that agree.
PRESENCE = ("exactly one of the pictures shows {}.", "both pictures or neither of them show {}.")
COUNT = (
    "the {} appears more often in one picture than in the other.",
    "the {} appears equally often in both pictures.",
)
PLACE = (
    "the {} is in different places in the two pictures.",
    "the {} is in the same place in both pictures.",
)
RELATION = (
    "the {} is {} the {} in exactly one of the pictures.",
    "the {} is {} the {} in both pictures or in neither of them.",
)
CELLS = len(PLACES) * len(PLACES[0])
FACTS = 2 + CELLS + MOST_COPIES  # number of codes: no and yes, cells, copies

Names = list[str]


@dataclass(frozen=True)
class Statement:
    """A statement about two scenes, whether it is true, and its kind.

    Attributes:
        facts: the fact in each picture, as a code below ``FACTS``: no or yes; or the cell of a thing; or
            its number of copies. The answer follows from both.
    """

    text: str
    answer: bool
    kind: str
    facts: tuple[int, int]


@dataclass(frozen=True)
class Wish:
    """Requirements on one picture of a pair: its things, and a condition."""

    names: Names
    fits: Callable[[Scene], bool] = lambda scene: True


@dataclass(frozen=True)
class Plan:
    """Plan of a pair: the statement, and the requirements on each picture."""

    text: str
    wishes: tuple[Wish, Wish]
    facts: tuple[int, int]


class EmojiStatements(SplitSequence[PairExample]):
    """Pairs of scenes with a statement, alternately true and false.

    Index ``i`` has kind ``i mod 5``; every kind is true as often as false.
    """

    version = 2

    def __getitem__(self, index: int) -> PairExample:  # type: ignore[override]  # no slices
        scenes, statement = self.scenes(index)
        first, second = (render(scene)[0] for scene in scenes)
        return PairExample((first, second), statement.text, statement.answer, statement.kind)

    def scenes(self, index: int) -> tuple[tuple[Scene, Scene], Statement]:
        """Return both unpainted scenes of an index, and the statement."""
        kinds = list(KINDS)
        answer = bool((index // len(kinds)) % 2)
        return draw_pair(self.split, kinds[index % len(kinds)], answer, self.rng(index))


def draw_pair(
    split: str, kind: str, answer: bool, rng: np.random.Generator
) -> tuple[tuple[Scene, Scene], Statement]:
    """Draw pairs until both scenes belong to the split."""
    while True:
        plan = KINDS[kind](answer, rng)
        scenes = [_drawn(wish, split, rng) for wish in plan.wishes]
        if scenes[0] is not None and scenes[1] is not None:
            return (scenes[0], scenes[1]), Statement(plan.text, answer, kind, plan.facts)


TRIES = 400  # attempts to draw a picture before the pair is planned again


def _drawn(wish: Wish, split: str, rng: np.random.Generator) -> Scene | None:
    for _ in range(TRIES):
        names = [wish.names[i] for i in rng.permutation(len(wish.names))]
        scene = place_things(names, rng)
        if scene is not None and split_of(scene) == split and wish.fits(scene):
            return scene
    return None


# --- Kinds: each plans both pictures so that the statement is true or false --------------------


def presence(answer: bool, rng: np.random.Generator) -> Plan:
    """Plan a thing in exactly one picture, or in both or neither."""
    name, others = _one(rng)
    named = f"{article(name)} {name}"
    text, differ = _differing(answer, rng, *(each.format(named) for each in PRESENCE))
    bits = _bits(differ, rng)
    wishes = _both(lambda bit: Wish(_some(rng, others, [name] if bit else [])), bits)
    return Plan(text, wishes, _codes(bits))


def category(answer: bool, rng: np.random.Generator) -> Plan:
    """Plan as ``presence``, for any thing of a category."""
    groups = names_by_category()
    kind = _pick(rng, tuple(groups))
    named = named_category(kind)
    text, differ = _differing(answer, rng, *(each.format(named) for each in PRESENCE))
    bits = _bits(differ, rng)
    others = [other for other in sprites() if other not in groups[kind]]

    def wish(bit: bool) -> Wish:
        return Wish(_some(rng, others, [_pick(rng, groups[kind])] if bit else []))

    return Plan(text, _both(wish, bits), _codes(bits))


def named_category(kind: str) -> str:
    """Return a category with its article."""
    return f"{article(kind)} {kind}" if kind != "nature" else "a nature thing"


def place(answer: bool, rng: np.random.Generator) -> Plan:
    """Plan a thing of both pictures in the same place, or in different ones."""
    name, others = _one(rng)
    text, differ = _differing(answer, rng, *(each.format(name) for each in PLACE))
    first, second = _two_of(CELLS, differ, rng)

    def wish(place: int) -> Wish:
        def fits(scene: Scene) -> bool:
            thing = _thing(scene, name)
            cell = divmod(place, len(PLACES[0]))
            return thing.cell == cell and thing.cell_margin() >= PLACE_MARGIN

        return Wish(_some(rng, others, [name]), fits)

    return Plan(text, (wish(first), wish(second)), (2 + first, 2 + second))


def relation(answer: bool, rng: np.random.Generator) -> Plan:
    """Plan two things, the first left of (or above) the second in one picture, or in both or neither."""
    names = list(sprites())
    one, other = (names[i] for i in rng.permutation(len(names))[:2])
    horizontal = rng.random() < 0.5
    word = "left of" if horizontal else "above"
    text, differ = _differing(answer, rng, *(each.format(one, word, other) for each in RELATION))
    bits = _bits(differ, rng)
    rest = [name for name in names if name not in (one, other)]

    def wish(bit: bool) -> Wish:
        def fits(scene: Scene) -> bool:
            first, second = _thing(scene, one), _thing(scene, other)
            gap = second.x - first.x if horizontal else second.y - first.y
            return abs(gap) >= AXIS_MARGIN and (gap > 0) == bit

        return Wish(_some(rng, rest, [one, other]), fits)

    return Plan(text, _both(wish, bits), _codes(bits))


def count(answer: bool, rng: np.random.Generator) -> Plan:
    """Plan one to three copies of a thing, equally many in both pictures or not."""
    name, others = _one(rng)
    text, differ = _differing(answer, rng, *(each.format(name) for each in COUNT))
    first, second = _two_of(MOST_COPIES, differ, rng)

    def wish(copies: int) -> Wish:
        more = int(rng.integers(0, MOST_THINGS - MOST_COPIES + 1))
        return Wish([name] * (copies + 1) + _distinct(rng, others, more))

    codes = 2 + CELLS + first, 2 + CELLS + second
    return Plan(text, (wish(first), wish(second)), codes)


KINDS: dict[str, Callable[[bool, np.random.Generator], Plan]] = {
    "presence": presence,
    "category": category,
    "place": place,
    "relation": relation,
    "count": count,
}


def _differing(answer: bool, rng: np.random.Generator, differ: str, agree: str) -> tuple[str, bool]:
    """Choose the wording that the pictures differ or agree; return it and whether they must differ."""
    if rng.random() < 0.5:
        return differ, answer
    return agree, not answer


def _two_of(number: int, differ: bool, rng: np.random.Generator) -> tuple[int, int]:
    """Draw two of ``number`` values, all equally likely: different ones, or the same twice."""
    first = int(rng.integers(number))
    return first, (first + int(rng.integers(1, number)) * differ) % number


def _bits(differ: bool, rng: np.random.Generator) -> tuple[bool, bool]:
    first = bool(rng.random() < 0.5)
    return first, first != differ


def _codes(bits: tuple[bool, bool]) -> tuple[int, int]:
    return int(bits[0]), int(bits[1])


def _both(wish: Callable[[bool], Wish], bits: tuple[bool, bool]) -> tuple[Wish, Wish]:
    return wish(bits[0]), wish(bits[1])


def _some(rng: np.random.Generator, others: Sequence[str], wanted: Names) -> Names:
    """Return ``wanted`` and some others, two to five things in all."""
    total = int(rng.integers(2, MOST_THINGS + 1))
    return wanted + _distinct(rng, others, total - len(wanted))


def _thing(scene: Scene, name: str) -> Thing:
    return next(thing for thing in scene.things if thing.name == name)


def _one(rng: np.random.Generator) -> tuple[str, Names]:
    """Draw the name of a thing; return it and all other names."""
    name = _pick(rng, tuple(sprites()))
    return name, [other for other in sprites() if other != name]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _distinct(rng: np.random.Generator, pool: Sequence[str], number: int) -> Names:
    return [pool[i] for i in rng.permutation(len(pool))[:number]]
