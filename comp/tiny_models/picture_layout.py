"""Image tokens of a picture in training: its pixels, the tokens before a question, and dense targets.

The target of an image token is the word for the thing that covers most of its square, and the centre and
size of that thing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from comp.checkpoints.image_prompt import MarkedTiles
from comp.checkpoints.image_settings import Tiles
from comp.checkpoints.tiling import grid_of, tiled_size, tiles_of
from comp.data.emoji_scenes.scenes import IMAGE_SIZE, SIZES, SQUARE, Scene
from comp.data.emoji_scenes.sprites import sprites
from comp.tiny_models.tiny_tokenizer import NOTHING

PREFIX_TEXT = "USER:"
IMAGE_TOKEN = "<image>"
COVERED = 0.25  # share of a token's square that a thing must cover to be its word
Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """A square part of a picture: its left and top edge and its size, in shares of the picture's edges."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


class PictureLayout(ABC):
    """How a model sees a picture.

    Args:
        tokenizer: of the model.
        grid: image tokens of an edge of a view.
        cell: pixels of an edge of the square of an image token.
    """

    sizes: tuple[Size, ...] = (SQUARE,)

    def __init__(self, tokenizer: PreTrainedTokenizerFast, grid: int, cell: int) -> None:
        self.tokenizer, self.grid, self.cell = tokenizer, grid, cell
        self.word_ids = {
            name: tokenizer.encode(name, add_special_tokens=False)[0]
            for name in (NOTHING, *sprites())
        }
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @abstractmethod
    def prefix(self, size: Size) -> list[int]:
        """Return the tokens before a question, an image token for each feature."""

    @abstractmethod
    def pixels(self, picture: Image.Image) -> np.ndarray:
        """Return the pixels of the views, ``uint8``."""

    @abstractmethod
    def views(self, size: Size) -> Iterator[View]:
        """Yield the views of a picture in the order of their tokens."""

    def targets(self, scene: Scene, owner: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``patch_word [N]``, ``patch_geometry [N, 3]`` and ``patch_centre [N]`` of N image tokens."""
        parts = [self._view(scene, owner, view) for view in self.views(scene.picture)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _view(self, scene: Scene, owner: np.ndarray, view: View) -> dict[str, np.ndarray]:
        grid, edge = self.grid, self.grid * self.cell
        seen_by = _resampled(owner, view, edge)
        patches = seen_by.reshape(grid, self.cell, grid, self.cell).transpose(0, 2, 1, 3)
        patches = patches.reshape(grid * grid, -1)
        cover = np.stack([(patches == i).sum(1) for i in range(len(scene.things))], axis=1)
        best, amount = cover.argmax(1), cover.max(1)
        seen = amount > COVERED * self.cell**2
        word = np.full(grid * grid, self.word_ids[NOTHING], dtype=np.int64)
        geometry = np.full((grid * grid, 3), np.nan, dtype=np.float32)
        centre = np.zeros(grid * grid, dtype=np.float32)
        width, height = scene.picture
        for i, thing in enumerate(scene.things):
            mine = seen & (best == i)
            x, y = thing.x / width, thing.y / height
            word[mine] = self.word_ids[thing.name]
            geometry[mine] = np.array([x, y, thing.size / IMAGE_SIZE])
            row = int((y - view.top) / view.height * grid // 1)
            column = int((x - view.left) / view.width * grid // 1)
            if 0 <= row < grid and 0 <= column < grid:
                centre[row * grid + column] = 1
        return {"patch_word": word, "patch_geometry": geometry, "patch_centre": centre}


class WholePicture(PictureLayout):
    """A square picture as one view, as LLaVA sees it."""

    def prefix(self, size: Size) -> list[int]:
        del size
        return [*self.tokenizer(PREFIX_TEXT)["input_ids"], *[self.image_token_id] * self.grid**2]

    def pixels(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture)

    def views(self, size: Size) -> Iterator[View]:
        del size
        yield View()


class TiledPicture(PictureLayout):
    """Tiles of a picture and then the whole, as SmolVLM sees them."""

    sizes = SIZES

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, grid: int, tiles: Tiles, resample: int
    ) -> None:
        super().__init__(tokenizer, grid, tiles.edge // grid)
        self.tiles, self.resample = tiles, resample

    def prefix(self, size: Size) -> list[int]:
        text = f"{PREFIX_TEXT} {MarkedTiles().of(grid_of(*size, self.tiles), IMAGE_TOKEN)}"
        ids: list[int] = []
        for token in self.tokenizer(text)["input_ids"]:
            ids.extend([token] * (self.grid**2 if token == self.image_token_id else 1))
        return ids

    def pixels(self, picture: Image.Image) -> np.ndarray:
        return np.stack([np.asarray(tile) for tile in tiles_of(picture, self.tiles, self.resample)])

    def views(self, size: Size) -> Iterator[View]:
        wide, tall = tiled_size(*size, self.tiles)
        grid, edge = grid_of(*size, self.tiles), self.tiles.edge
        for row in range(grid.rows):
            for column in range(grid.columns):
                yield View(column * edge / wide, row * edge / tall, edge / wide, edge / tall)
        yield View()


def _resampled(owner: np.ndarray, view: View, edge: int) -> np.ndarray:
    """Return a view of a map ``[height, width]`` as ``[edge, edge]``, by its nearest pixels."""
    height, width = owner.shape
    places = (np.arange(edge) + 0.5) / edge
    rows = ((view.top + view.height * places) * height).astype(int)
    columns = ((view.left + view.width * places) * width).astype(int)
    return owner[rows[:, None], columns]
