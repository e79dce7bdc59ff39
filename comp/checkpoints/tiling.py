"""Cut a picture into square tiles, as the image processors of Idefics3, SmolVLM and InternVL do.

Sources: ``Idefics3ImageProcessorPil`` and ``GotOcr2ImageProcessorPil`` of transformers.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from PIL import Image

from comp.checkpoints.image_settings import Tiles

LONGEST = 4096  # pixels: MAX_IMAGE_SIZE of the processors


@dataclass(frozen=True)
class Grid:
    """Tiles of a picture: rows and columns, and then the whole picture as one more tile.

    Without rows there is the whole picture alone.
    """

    rows: int = 0
    columns: int = 0

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns + 1


def tiled_size(width: int, height: int, tiles: Tiles) -> tuple[int, int]:
    """Return the width and height that a picture is resized to before it is cut, first and then last.

    The result is a multiple of the edge of a tile.
    """
    edge = tiles.edge
    if tiles.longest_edge is None:
        rows, columns = _arrangement(width, height, tiles)
        return columns * edge, rows * edge
    width, height = _to_longest(width, height, tiles.longest_edge)
    aspect = width / height
    if width >= height:
        width = ceil(width / edge) * edge
        height = ceil(int(width / aspect) / edge) * edge
    else:
        height = ceil(height / edge) * edge
        width = ceil(int(height * aspect) / edge) * edge
    return width, height


def grid_of(width: int, height: int, tiles: Tiles) -> Grid:
    """Return the tiles of a picture of this size in pixels, without reading its pixels."""
    if not tiles.splits:
        return Grid()
    wide, tall = tiled_size(width, height, tiles)
    if wide <= tiles.edge and tall <= tiles.edge:
        return Grid()
    return Grid(tall // tiles.edge, wide // tiles.edge)


def tiles_of(picture: Image.Image, tiles: Tiles, resample: int) -> list[Image.Image]:
    """Return the tiles of a picture, row by row, and the whole picture as the last one.

    Args:
        picture: an RGB picture.
        tiles: sizes.
        resample: Pillow's number of the filter.
    """
    kernel, edge = Image.Resampling(resample), tiles.edge
    resized = picture
    if tiles.longest_edge is not None:
        resized = picture.resize(_to_longest(*picture.size, tiles.longest_edge), kernel)
    if not tiles.splits:
        return [resized.resize((edge, edge), kernel)]
    wide = resized.resize(tiled_size(*picture.size, tiles), kernel)
    grid = grid_of(*picture.size, tiles)
    if not grid.rows:
        return [wide]
    boxes = [
        (column * edge, row * edge, (column + 1) * edge, (row + 1) * edge)
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    whole = picture if tiles.longest_edge is None else wide
    return [*(wide.crop(box) for box in boxes), whole.resize((edge, edge), kernel)]


def _arrangement(width: int, height: int, tiles: Tiles) -> tuple[int, int]:
    """Return the rows and columns whose aspect ratio is nearest to the picture's.

    Of equally near ones, the later and larger is taken while it has less than twice the picture's area.
    """
    best, nearest = (1, 1), float("inf")
    for columns, rows in _arrangements(tiles.fewest, tiles.most or 1):
        distance = abs(width / height - columns / rows)
        small = width * height <= 0.5 * tiles.edge**2 * columns * rows
        if distance < nearest or (distance == nearest and not small):
            best, nearest = (rows, columns), distance
    return best


@lru_cache(maxsize=16)
def _arrangements(fewest: int, most: int) -> list[tuple[int, int]]:
    """Return all columns and rows of ``fewest`` to ``most`` tiles, the fewest tiles first."""
    every = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if columns * rows >= fewest
    ]
    return sorted(every, key=lambda each: each[0] * each[1])


def _to_longest(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the size with its longer edge of this length; the other one is even."""
    aspect = width / height
    if width >= height:
        width, height = longest, _even(int(longest / aspect))
    else:
        width, height = _even(int(longest * aspect)), longest
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height and width > LONGEST:
        width, height = LONGEST, int(LONGEST / aspect)
    elif height > width and height > LONGEST:
        width, height = int(LONGEST * aspect), LONGEST
    return max(width, 1), max(height, 1)


def _even(length: int) -> int:
    return length + length % 2
