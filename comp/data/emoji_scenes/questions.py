"""The twelve question kinds of EmojiScenes.

Each kind has two functions: ``compose`` chooses the names in a scene so that the question makes sense, and
``ask`` asks it about a scene. ``ask`` refuses scenes with an arguable answer, by margins in pixels or size.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from comp.data.emoji_scenes.scenes import MAX_THINGS, Scene, Thing
from comp.data.emoji_scenes.sprites import CATEGORY_PLURALS, names_by_category, sprites

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
PLACE_MARGIN = 7.0
AXIS_MARGIN = 11.0
SIZE_RATIO = 1.22

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question, its one right answer and its kind."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Kind:
    """Functions that compose scenes for a kind of question, and ask it."""

    compose: Callable[[np.random.Generator], list[str]]
    ask: Callable[[Scene, np.random.Generator], Question | None]


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _all_names() -> tuple[str, ...]:
    return tuple(sprites())


def _distinct(rng: np.random.Generator, pool: tuple[str, ...], count: int) -> list[str]:
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _shuffled(rng: np.random.Generator, names: list[str]) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


# --- Composing: the things in the scene --------------------------------------------------------


def compose_free(rng: np.random.Generator, low: int = 1, high: int = MAX_THINGS) -> list[str]:
    """Distinct things of any category."""
    return _distinct(rng, _all_names(), int(rng.integers(low, high + 1)))


def compose_copies(rng: np.random.Generator) -> list[str]:
    """One to five copies of one thing among others."""
    copies = int(rng.integers(1, 6))
    others = int(rng.integers(0, MAX_THINGS + 1 - copies))
    names = _distinct(rng, _all_names(), others + 1)
    return _shuffled(rng, names[:1] * copies + names[1:])


def compose_categories(rng: np.random.Generator) -> list[str]:
    """Different numbers of things of two categories, and sometimes one of a third."""
    first, second, third = _distinct(rng, tuple(CATEGORY_PLURALS), 3)
    many = int(rng.integers(2, 6))
    few = int(rng.integers(1, min(many, 4)))
    groups = names_by_category()
    names = _distinct(rng, groups[first], many) + _distinct(rng, groups[second], few)
    if len(names) < MAX_THINGS and rng.random() < 0.3:
        names += _distinct(rng, groups[third], 1)
    return _shuffled(rng, names[:MAX_THINGS])


def compose_category_count(rng: np.random.Generator) -> list[str]:
    """One to five things of one category among others of any other category."""
    category = _pick(rng, tuple(CATEGORY_PLURALS))
    group = names_by_category()[category]
    others = tuple(name for name in _all_names() if name not in group)
    count = int(rng.integers(1, 6))
    rest = int(rng.integers(0, MAX_THINGS + 1 - count))
    return _shuffled(rng, _distinct(rng, group, count) + _distinct(rng, others, rest))


def compose_odd(rng: np.random.Generator) -> list[str]:
    """Two to five things of one category and one of another."""
    same, other = _distinct(rng, tuple(CATEGORY_PLURALS), 2)
    groups = names_by_category()
    count = int(rng.integers(2, 6))
    return _shuffled(rng, _distinct(rng, groups[same], count) + _distinct(rng, groups[other], 1))


def compose_even_categories(rng: np.random.Generator) -> list[str]:
    """One to seven things, each of a category drawn evenly."""
    names: list[str] = []
    for _ in range(int(rng.integers(1, MAX_THINGS + 1))):
        group = names_by_category()[_pick(rng, tuple(CATEGORY_PLURALS))]
        names.append(_pick(rng, [name for name in group if name not in names]))
    return names


# --- Asking ------------------------------------------------------------------------------------


def _single(scene: Scene) -> list[Thing]:
    """Things whose name occurs once."""
    counts = Counter(thing.name for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.name] == 1]


def _alone_in_cell(scene: Scene) -> list[Thing]:
    """Things clearly inside a cell of the grid that no other thing's centre comes near."""
    alone = []
    for thing in scene.things:
        if thing.cell_margin() < PLACE_MARGIN:
            continue
        row, column = thing.cell
        width, height = thing.cell_size
        near = [
            other
            for other in scene.things
            if other is not thing
            and -PLACE_MARGIN <= other.y - row * height <= height + PLACE_MARGIN
            and -PLACE_MARGIN <= other.x - column * width <= width + PLACE_MARGIN
        ]
        if not near:
            alone.append(thing)
    return alone


def ask_where(scene: Scene, rng: np.random.Generator) -> Question | None:
    clear = [thing for thing in _single(scene) if thing.cell_margin() >= PLACE_MARGIN]
    if not clear:
        return None
    thing = _pick(rng, clear)
    text = _pick(
        rng,
        (
            "where is the {}?",
            "in which part of the picture is the {}?",
            "where can you see the {}?",
            "what is the position of the {}?",
        ),
    )
    return Question(text.format(thing.name), thing.place, "where")


def ask_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    alone = _alone_in_cell(scene)
    if not alone:
        return None
    thing = _pick(rng, alone)
    text = _pick(
        rng,
        (
            "what is at the {}?",
            "which thing is in the {} part of the picture?",
            "name the thing at the {}.",
            "what do you see at the {}?",
        ),
    )
    return Question(text.format(thing.place), thing.name, "at")


def ask_exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    present = sorted({thing.name for thing in scene.things})
    if rng.random() < 0.5:
        name, answer = _pick(rng, present), "yes"
    else:
        seen = _pick(rng, list(scene.things))
        pool = names_by_category()[seen.category] if rng.random() < 0.5 else _all_names()
        absent = [name for name in pool if name not in present]
        if not absent:
            return None
        name, answer = _pick(rng, absent), "no"
    text = _pick(
        rng,
        (
            "is there a {} in the picture?",
            "can you see a {}?",
            "does the picture show a {}?",
            "is a {} here?",
        ),
    )
    return Question(text.format(name), answer, "exists")


def ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter(thing.name for thing in scene.things)
    # The thing with the most copies: compose_copies makes its number even over one to five.
    most = max(counts.values())
    name = _pick(rng, sorted(name for name, count in counts.items() if count == most))
    text = _pick(
        rng,
        (
            "how many times do you see the {}?",
            "how often does the {} appear?",
            "count the {} in the picture.",
            "how many of the {} are there?",
        ),
    )
    return Question(text.format(name), NUMBER_WORDS[most], "count")


def ask_count_category(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter(thing.category for thing in scene.things)
    category = _pick(rng, scene.things).category  # weighted by number: keeps the answers even
    text = _pick(
        rng,
        (
            "how many {} are there?",
            "how many {} can you see?",
            "count the {}.",
            "what is the number of {} in the picture?",
        ),
    )
    answer = NUMBER_WORDS[counts[category]]
    return Question(text.format(CATEGORY_PLURALS[category]), answer, "count_category")


def ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    single = _single(scene)
    if len(single) < 2:
        return None
    first, second = (single[i] for i in rng.permutation(len(single))[:2])
    horizontal = rng.random() < 0.5
    gap = second.x - first.x if horizontal else second.y - first.y
    if abs(gap) < AXIS_MARGIN:
        return None
    before, after = ("left of", "right of") if horizontal else ("above", "below")
    relation = _pick(rng, (before, after))
    answer = "yes" if (gap > 0) == (relation == before) else "no"
    text = _pick(
        rng,
        (
            "is the {} {} the {}?",
            "do you see the {} {} the {}?",
            "is it true that the {} is {} the {}?",
        ),
    )
    return Question(text.format(first.name, relation, second.name), answer, "relation")


def ask_extreme(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.things) < 2:
        return None
    horizontal, low = rng.random() < 0.5, rng.random() < 0.5
    ranked = sorted(
        scene.things, key=lambda thing: (thing.x if horizontal else thing.y) * (1 if low else -1)
    )
    gap = ranked[1].x - ranked[0].x if horizontal else ranked[1].y - ranked[0].y
    if abs(gap) < AXIS_MARGIN:
        return None
    side = ("left" if low else "right") if horizontal else ("top" if low else "bottom")
    superlative = {"left": "leftmost", "right": "rightmost", "top": "topmost"}.get(side, "lowest")
    text = _pick(
        rng,
        (
            f"what is {superlative}?",
            f"which thing is {superlative}?",
            f"which thing is closest to the {side} edge?",
            f"name the {superlative} thing.",
        ),
    )
    return Question(text, ranked[0].name, "extreme")


def ask_size(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.things) < 2:
        return None
    ranked = sorted(scene.things, key=lambda thing: thing.size)
    if rng.random() < 0.5:
        thing, ratio, word = ranked[-1], ranked[-1].size / ranked[-2].size, ("largest", "biggest")
    else:
        thing, ratio, word = ranked[0], ranked[1].size / ranked[0].size, ("smallest", "tiniest")
    if ratio < SIZE_RATIO:
        return None
    text = _pick(rng, ("what is the {} thing?", "which thing is the {}?", "name the {} thing."))
    return Question(text.format(_pick(rng, word)), thing.name, "size")


def ask_more(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter(thing.category for thing in scene.things)
    pairs = [(a, b) for a in counts for b in counts if counts[a] != counts[b]]
    if not pairs:
        return None
    first, second = _pick(rng, sorted(pairs))
    answer = first if counts[first] > counts[second] else second
    text = _pick(
        rng,
        (
            "are there more {} or {}?",
            "which are more, {} or {}?",
            "do you see more {} or more {}?",
        ),
    )
    plurals = CATEGORY_PLURALS
    return Question(text.format(plurals[first], plurals[second]), plurals[answer], "more")


def ask_category(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.things) == 1:
        text = _pick(rng, ("what kind of thing is this?", "what category is this thing?"))
        return Question(text, scene.things[0].category, "category")
    alone = _alone_in_cell(scene)
    if not alone:
        return None
    thing = _pick(rng, alone)
    text = _pick(
        rng,
        (
            "what kind of thing is at the {}?",
            "what category is the thing at the {}?",
            "what kind of thing do you see at the {}?",
        ),
    )
    return Question(text.format(thing.place), thing.category, "category")


def ask_odd(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter(thing.category for thing in scene.things)
    if len(counts) != 2 or min(counts.values()) != 1 or max(counts.values()) < 2:
        return None
    odd = min(counts, key=lambda category: counts[category])
    name = next(thing.name for thing in scene.things if thing.category == odd)
    text = _pick(
        rng,
        (
            "which thing does not belong?",
            "what is the odd one out?",
            "which thing is of another kind than the rest?",
        ),
    )
    return Question(text, name, "odd")


def ask_list(scene: Scene, rng: np.random.Generator) -> Question | None:
    ordered = sorted(scene.things, key=lambda thing: thing.x)
    gaps = [b.x - a.x for a, b in pairwise(ordered)]
    if len(ordered) > 4 or any(gap < AXIS_MARGIN for gap in gaps):
        return None
    text = _pick(
        rng,
        (
            "list the things from left to right.",
            "what is in the picture, from left to right?",
            "describe the picture from left to right.",
        ),
    )
    return Question(text, ", ".join(thing.name for thing in ordered), "list")


KINDS: dict[str, Kind] = {
    "where": Kind(compose_free, ask_where),
    "at": Kind(compose_free, ask_at),
    "exists": Kind(compose_free, ask_exists),
    "count": Kind(compose_copies, ask_count),
    "count_category": Kind(compose_category_count, ask_count_category),
    "relation": Kind(lambda rng: compose_free(rng, low=2), ask_relation),
    "extreme": Kind(lambda rng: compose_free(rng, low=2), ask_extreme),
    "size": Kind(lambda rng: compose_free(rng, low=2), ask_size),
    "more": Kind(compose_categories, ask_more),
    "category": Kind(compose_even_categories, ask_category),
    "odd": Kind(compose_odd, ask_odd),
    "list": Kind(lambda rng: compose_free(rng, low=2, high=4), ask_list),
}
