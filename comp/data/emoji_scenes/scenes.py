"""Draw and paint scenes of things.

A scene has 1 to 7 things of varied size and rotation, some overlapping, on a varied background of 168x168
pixels or, if a caller says so, of another size. Everything is drawn from one ``numpy`` generator, so that a
scene is a function of its seed.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from comp.data.emoji_scenes.sprites import sprites

IMAGE_SIZE = 168
CELL = IMAGE_SIZE // 3
SQUARE = (IMAGE_SIZE, IMAGE_SIZE)
SIZES = (SQUARE, (168, 112), (112, 168), (168, 84), (84, 168))
"""Widths and heights of pictures for models that read any size."""
ROOM = 0.6  # largest thing in a picture that is no square, as a share of its shorter side
MAX_THINGS = 7
MAX_ANGLE = 40.0
MAX_OVERLAP = 0.18
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True)
class Thing:
    """One thing in a scene; centre and side length in pixels, rotation in degrees.

    ``picture`` is the width and height of the scene.
    """

    name: str
    x: float
    y: float
    size: float
    angle: float
    picture: tuple[int, int] = SQUARE

    @property
    def category(self) -> str:
        return sprites()[self.name].category

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column of the 3x3 cell that holds the centre."""
        width, height = self.cell_size
        return int(self.y // height), int(self.x // width)

    @property
    def cell_size(self) -> tuple[int, int]:
        """Width and height of a cell of the 3x3 grid."""
        return self.picture[0] // 3, self.picture[1] // 3

    @property
    def place(self) -> str:
        row, column = self.cell
        return PLACES[row][column]

    def cell_margin(self) -> float:
        """Distance in pixels from the centre to the nearest inner line of the 3x3 grid."""
        places = zip((self.x, self.y), self.cell_size, strict=True)
        return min(abs(value - line) for value, edge in places for line in (edge, 2 * edge))


@dataclass(frozen=True)
class Scene:
    """Things from back to front, the seed its background is painted from, and its width and height."""

    things: tuple[Thing, ...]
    background_seed: int
    picture: tuple[int, int] = SQUARE

    def signature(self) -> int:
        """Hash of the things and their cells: equal layouts have equal signatures.

        Splits are chosen by it, so that no layout of the test split occurs in training.
        """
        layout = sorted((thing.name, thing.cell) for thing in self.things)
        digest = hashlib.blake2b(repr(layout).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def place_things(
    names: list[str], rng: np.random.Generator, picture: tuple[int, int] = SQUARE
) -> Scene | None:
    """Draw a size, a place and a rotation for each name; ``None`` if they do not fit."""
    n = len(names)
    largest: float = {1: 92, 2: 84, 3: 74, 4: 66, 5: 60}.get(n, 54)
    if picture != SQUARE:
        largest = min(largest, ROOM * min(picture))
    placed: list[Thing] = []
    for name in names:
        size = float(rng.uniform(34, largest))
        for _ in range(24):
            x, y = rng.uniform(size / 2, np.array(picture) - size / 2)
            angle = float(rng.uniform(-MAX_ANGLE, MAX_ANGLE))
            thing = Thing(name, float(x), float(y), size, angle, picture)
            if all(overlap(thing, other) <= MAX_OVERLAP for other in placed):
                placed.append(thing)
                break
        else:
            return None
    return Scene(tuple(placed), int(rng.integers(2**31)), picture)


def render(scene: Scene) -> tuple[Image.Image, np.ndarray]:
    """Paint a scene.

    Returns:
        The RGB image, and an ``int8`` array ``[height, width]`` with the index of the thing visible at each
        pixel (-1 for background).
    """
    width, height = scene.picture
    canvas = _background(np.random.default_rng(scene.background_seed), width, height)
    owner = np.full((height, width), -1, dtype=np.int8)
    for index, thing in enumerate(scene.things):
        side = round(thing.size)
        picture = sprites()[thing.name].image.resize((side, side), Image.Resampling.BICUBIC)
        picture = picture.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
        left, top = (
            round(centre - extent / 2)
            for centre, extent in zip((thing.x, thing.y), picture.size, strict=True)
        )
        canvas.paste(picture, (left, top), picture)
        alpha = np.asarray(picture)[..., 3] > 127
        rows = slice(max(top, 0), min(top + picture.height, height))
        columns = slice(max(left, 0), min(left + picture.width, width))
        inside = alpha[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        owner[rows, columns][inside] = index
    return canvas, owner


def overlap(a: Thing, b: Thing) -> float:
    """Share of the smaller thing's box that the other covers (boxes shrunk to a typical outline)."""
    reach = 0.45 * (a.size + b.size)
    width, height = reach - abs(a.x - b.x), reach - abs(a.y - b.y)
    if width <= 0 or height <= 0:
        return 0.0
    smaller = 0.9 * min(a.size, b.size)
    return min(width, smaller) * min(height, smaller) / smaller**2


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Paint a flat, graded, striped, checked or noisy background in two muted colours."""
    first, second = rng.uniform(70, 255, size=(2, 3))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    style = rng.integers(5)
    if style == 0:
        blend = np.zeros_like(rows)
    elif style == 1:
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * columns + np.sin(angle) * rows
        blend = (slope - slope.min()) / (slope.max() - slope.min())
    elif style == 2:
        period, angle = rng.uniform(12, 60), rng.uniform(0, np.pi)
        wave = np.cos(angle) * columns + np.sin(angle) * rows
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * wave / period)
    elif style == 3:
        side = int(rng.integers(14, 43))
        blend = ((rows // side + columns // side) % 2).astype(np.float32) * 0.6
    else:
        coarse = rng.integers(0, 256, size=(7, 7), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        blend = np.asarray(smooth, dtype=np.float32) / 255
    colours = first + blend[..., None] * (second - first)
    colours += rng.normal(0, rng.uniform(0, 6), size=(height, width, 1))
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
