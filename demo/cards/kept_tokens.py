"""Draw which image tokens a compressed model keeps."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.checkpoints.tiling import Grid, grid_of
from comp.data.images import ImageSource, read_image
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.manifest import Manifest
from serve.engines.preprocess import model_view, model_views
from serve.generation.results import Kept

MOST_PLACES = 4  # shown per picture: if every layer drops, neighbours look alike
DIM = 0.82  # share of grey in a dropped patch
PAPER = 240.0  # the grey it fades to
P = TypeVar("P")


@dataclass(frozen=True)
class KeptPicture:
    """One drop place: the picture with dropped patches dimmed, and its numbers."""

    place: str
    picture: Image.Image
    kept: int
    of: int


@dataclass(frozen=True)
class KeptView:
    """One picture as the model sees it, and the kept tokens at some drop places.

    Attributes:
        name: name of the whole picture.
        seen: the picture at the model's size.
        pictures: for at most ``MOST_PLACES`` of the drop places.
        places: number of drop places.
    """

    name: str
    seen: Image.Image
    pictures: tuple[KeptPicture, ...]
    places: int

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        image: ImageSource,
        kept: Kept,
        number: int = 0,
        name: str = "the model's view",
    ) -> "KeptView":
        """Return the view of one image of a request.

        Args:
            manifest: manifest of the artifact.
            image: the picture.
            kept: the kept tokens of all images of the request.
            number: index of the image among them.
            name: name of the picture.
        """
        patches, places = Patches.of(manifest), kept.seen(number)
        view, patches = _view(image, manifest, patches)
        pictures = [kept_picture(view, patches, tokens, place) for place, tokens in spread(places)]
        return cls(name, view, tuple(pictures), len(places))


def spread(places: Sequence[P], most: int = MOST_PLACES) -> list[P]:
    """Up to ``most`` places in order: the first, the last, and evenly between."""
    if len(places) <= most:
        return list(places)
    return [places[round(step)] for step in np.linspace(0, len(places) - 1, most)]


@dataclass(frozen=True)
class Patches:
    """The grid that cuts a picture into tokens.

    Attributes:
        image_size, patch_size: in pixels; a patch is the part of the picture of one token.
        tokens: per image; of a picture that is cut into tiles, of all its tiles.
        class_token: whether the first of them is [CLS], which is no patch.
        grid: tiles of the picture; their tokens come row by row, those of the whole picture last.
    """

    image_size: int
    patch_size: int
    tokens: int
    class_token: bool
    grid: Grid = Grid()

    @classmethod
    def of(cls, manifest: Manifest) -> "Patches":
        """The patches of an artifact's vision tower."""
        if isinstance(manifest, LlavaManifest):
            llava = manifest.vision
            first = llava.select_strategy == "full"
            edge = llava.patch_size * llava.shuffle
            return cls(llava.image_size, edge, llava.all_image_tokens, first)
        assert isinstance(manifest, EncoderManifest)
        tower = manifest.vision
        return cls(tower.image_size, tower.patch_size, tower.tokens, class_token=True)

    def shown(self, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pixels ``[H, W]`` of the picture the kept tokens show.

        Tokens of the whole picture are not drawn beside those of its tiles.
        """
        side = self.image_size // self.patch_size
        places = kept - 1 if self.class_token else kept
        rows, columns = max(self.grid.rows, 1), max(self.grid.columns, 1)
        stays = np.zeros(rows * columns * side * side, dtype=bool)
        stays[places[(places >= 0) & (places < stays.size)]] = True
        of_tiles = stays.reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
        patches = of_tiles.reshape(rows * side, columns * side)
        return np.kron(patches, np.ones((self.patch_size,) * 2, dtype=bool))


def _view(image: ImageSource, manifest: Manifest, patches: Patches) -> tuple[Image.Image, Patches]:
    """The picture as the model sees it, and the grid of its tokens."""
    processing = manifest.image_processor
    if processing.tiles is None:
        return model_view(image, processing), patches
    picture, edge = read_image(image), processing.tiles.edge
    views, grid = model_views(picture, processing), grid_of(*picture.size, processing.tiles)
    patches = replace(patches, grid=grid, tokens=patches.tokens * len(views))
    if not grid.rows:
        return views[0], patches
    whole = Image.new("RGB", (grid.columns * edge, grid.rows * edge))
    for number, view in enumerate(views[:-1]):
        whole.paste(view, (number % grid.columns * edge, number // grid.columns * edge))
    return whole, patches


def kept_picture(
    view: Image.Image, patches: Patches, kept: NDArray[np.int64], place: str
) -> KeptPicture:
    """Dim the dropped patches.

    Args:
        view: the model's input, square, ``image_size`` pixels wide; of tiles, all of them.
        patches: the grid of its tokens.
        kept: which of the image's tokens ``0..T-1`` were kept.
        place: name of the drop place.
    """
    mask = patches.shown(kept)
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32)  # [H, W, 3]
    shown = np.zeros(pixels.shape[:2], dtype=bool)  # the patches may leave a margin
    shown[: mask.shape[0], : mask.shape[1]] = mask
    grey = pixels.mean(axis=-1, keepdims=True)
    faded = (1 - DIM) * grey + DIM * PAPER
    drawn = np.where(shown[..., None], pixels, faded).round().astype(np.uint8)
    return KeptPicture(place, Image.fromarray(drawn), int(kept.size), patches.tokens)


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a ``data:`` address, so that the page fetches nothing."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WEBP", quality=96)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
