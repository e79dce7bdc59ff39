"""Pairs of scenes that allow many statements, for training only.

``comp.data.emoji_scenes.statements`` draws two pictures for one statement; encoding them costs far more than
reading it. Here both pictures have things from one small pool, some in the same place, so that many
statements of every kind can be made about them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from comp.data.emoji_scenes.captions import article
from comp.data.emoji_scenes.questions import AXIS_MARGIN, PLACE_MARGIN
from comp.data.emoji_scenes.scenes import CELL, PLACES, Scene, Thing, overlap, place_things
from comp.data.emoji_scenes.splits import split_of
from comp.data.emoji_scenes.sprites import names_by_category, sprites
from comp.data.emoji_scenes.statements import (
    CELLS,
    COUNT,
    MOST_COPIES,
    MOST_THINGS,
    PLACE,
    PRESENCE,
    RELATION,
    named_category,
)

Pair = tuple[Scene, Scene]
UNKNOWN = -100
LEAST_POOL, MOST_POOL = 3, 4
REPEATED = 0.3  # chance to repeat a thing
ALIKE = 0.5  # chance that a thing of both pictures is moved to its place in the first one


@dataclass(frozen=True)
class PairStatement:
    """One statement about a pair.

    Attributes:
        facts: the fact in each picture, coded as in ``comp.data.emoji_scenes.statements``.
        cells: cells of the first and the second named thing in each picture, or ``UNKNOWN``.
    """

    text: str
    answer: bool
    kind: str
    facts: tuple[int, int]
    cells: tuple[tuple[int, int], tuple[int, int]] = ((UNKNOWN, UNKNOWN), (UNKNOWN, UNKNOWN))


@dataclass(frozen=True)
class _Matter:
    """A fact with two wordings: that the pictures differ in it, and that they agree."""

    wordings: tuple[str, str]
    facts: tuple[int, int]
    cells: tuple[tuple[int, int], tuple[int, int]] = ((UNKNOWN, UNKNOWN), (UNKNOWN, UNKNOWN))


def draw_pair_of_pool(split: str, rng: np.random.Generator) -> Pair:
    """Draw two scenes of the split with things from one pool."""
    names = list(sprites())
    while True:
        size = int(rng.integers(LEAST_POOL, MOST_POOL + 1))
        pool = [names[i] for i in rng.permutation(len(names))[:size]]
        first = place_things(_some(pool, rng), rng)
        second = place_things(_some(pool, rng), rng)
        if first is None or second is None:
            continue
        second = _moved_alike(first, second, rng)
        if split_of(first) == split and split_of(second) == split:
            return first, second


def statements_about(
    pair: Pair, kinds: Sequence[str], share: np.ndarray, number: int, rng: np.random.Generator
) -> list[PairStatement]:
    """Draw ``number`` statements about a pair.

    In each kind the pictures differ as often as they agree, and both wordings are equally likely, so that
    words alone do not give the answer.

    Raises:
        ValueError: no statement of these kinds is possible.
    """
    if not any(MATTERS[kind](pair, rng) for kind in kinds):
        raise ValueError(f"no statement of these kinds about the pictures: {', '.join(kinds)}")
    statements: list[PairStatement] = []
    matters: dict[str, list[_Matter]] = {}
    while len(statements) < number:
        kind = kinds[int(rng.choice(len(kinds), p=share))]
        if kind not in matters:
            matters[kind] = MATTERS[kind](pair, rng)
        differ = bool(rng.random() < 0.5)
        fitting = [
            matter for matter in matters[kind] if (matter.facts[0] != matter.facts[1]) == differ
        ]
        if not fitting:
            continue
        matter = fitting[int(rng.integers(len(fitting)))]
        agreeing = bool(rng.random() < 0.5)
        text = matter.wordings[agreeing]
        statements.append(PairStatement(text, differ != agreeing, kind, matter.facts, matter.cells))
    return statements


def _some(pool: list[str], rng: np.random.Generator) -> list[str]:
    """Draw two to five things from a pool, some of them more than once."""
    total = int(rng.integers(2, MOST_THINGS + 1))
    names: list[str] = []
    while len(names) < total:
        name = pool[int(rng.integers(len(pool)))]
        if names.count(name) < MOST_COPIES and (name not in names or rng.random() < REPEATED):
            names.append(name)
        elif len(set(names)) == len(pool):
            break
    return names


def _moved_alike(first: Scene, second: Scene, rng: np.random.Generator) -> Scene:
    """Move some things of the second picture to their place in the first, if there is room."""
    things = list(second.things)
    for number, thing in enumerate(things):
        model = _only(first, thing.name)
        if model is None or _only(second, thing.name) is None or rng.random() >= ALIKE:
            continue
        row, column = model.cell
        x, y = (float(rng.uniform(side, side + 1) * CELL) for side in (column, row))
        half = thing.size / 2
        edge = len(PLACES) * CELL
        moved = replace(thing, x=min(max(x, half), edge - half), y=min(max(y, half), edge - half))
        others = things[:number] + things[number + 1 :]
        if all(overlap(moved, other) <= 0 for other in others):
            things[number] = moved
    return replace(second, things=tuple(things))


def _copies(scene: Scene, name: str) -> list[Thing]:
    return [thing for thing in scene.things if thing.name == name]


def _only(scene: Scene, name: str) -> Thing | None:
    """Return the thing with this name, if there is exactly one."""
    copies = _copies(scene, name)
    return copies[0] if len(copies) == 1 else None


def _cell(thing: Thing) -> int:
    row, column = thing.cell
    return row * len(PLACES[0]) + column


def _names(pair: Pair) -> list[str]:
    return sorted({thing.name for scene in pair for thing in scene.things})


def _formatted(wordings: tuple[str, str], *words: str) -> tuple[str, str]:
    return wordings[0].format(*words), wordings[1].format(*words)


def _presence(pair: Pair, rng: np.random.Generator) -> list[_Matter]:
    """Facts about every thing that is present, and about half as many that are not."""
    there = _names(pair)
    absent = [name for name in sprites() if name not in there]
    names = there + [absent[i] for i in rng.permutation(len(absent))[: max(1, len(there) // 2)]]
    matters = []
    for name in names:
        first, second = (int(bool(_copies(scene, name))) for scene in pair)
        wordings = _formatted(PRESENCE, f"{article(name)} {name}")
        matters.append(_Matter(wordings, (first, second)))
    return matters


def _category(pair: Pair, _rng: np.random.Generator) -> list[_Matter]:
    matters = []
    for kind in names_by_category():
        first, second = (
            int(any(thing.category == kind for thing in scene.things)) for scene in pair
        )
        matters.append(_Matter(_formatted(PRESENCE, named_category(kind)), (first, second)))
    return matters


def _place(pair: Pair, _rng: np.random.Generator) -> list[_Matter]:
    matters = []
    for name in _names(pair):
        one, other = (_only(scene, name) for scene in pair)
        if one is None or other is None:
            continue
        if min(one.cell_margin(), other.cell_margin()) >= PLACE_MARGIN:
            first, second = _cell(one), _cell(other)
            cells = ((first, UNKNOWN), (second, UNKNOWN))
            wordings = _formatted(PLACE, name)
            matters.append(_Matter(wordings, (2 + first, 2 + second), cells))
    return matters


def _relation(pair: Pair, _rng: np.random.Generator) -> list[_Matter]:
    single = [n for n in _names(pair) if all(_only(scene, n) is not None for scene in pair)]
    matters = []
    for one in single:
        for other in single:
            for axis, word in (("x", "left of"), ("y", "above")):
                gaps, cells = [], []
                for scene in pair:
                    (first,), (second,) = _copies(scene, one), _copies(scene, other)
                    gaps.append(getattr(second, axis) - getattr(first, axis))
                    cells.append((_cell(first), _cell(second)))
                if min(map(abs, gaps)) >= AXIS_MARGIN:
                    facts = int(gaps[0] > 0), int(gaps[1] > 0)
                    wordings = _formatted(RELATION, one, word, other)
                    matters.append(_Matter(wordings, facts, (cells[0], cells[1])))
    return matters


def _count(pair: Pair, _rng: np.random.Generator) -> list[_Matter]:
    matters = []
    for name in _names(pair):
        first, second = (len(_copies(scene, name)) for scene in pair)
        if first and second:
            codes = 2 + CELLS + first - 1, 2 + CELLS + second - 1
            matters.append(_Matter(_formatted(COUNT, name), codes))
    return matters


MATTERS: dict[str, Callable[[Pair, np.random.Generator], list[_Matter]]] = {
    "presence": _presence,
    "category": _category,
    "place": _place,
    "relation": _relation,
    "count": _count,
}
