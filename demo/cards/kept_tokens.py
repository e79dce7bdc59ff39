"""Draw which image tokens a compressed model keeps."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.data.images import ImageSource
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.manifest import Manifest
from serve.engines.preprocess import model_view
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
        view = model_view(image, manifest.image_processor)
        patches, places = Patches.of(manifest), kept.seen(number)
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
        image_size, patch_size: in pixels.
        tokens: per image.
        class_token: whether the first of them is [CLS], which is no patch.
    """

    image_size: int
    patch_size: int
    tokens: int
    class_token: bool

    @classmethod
    def of(cls, manifest: Manifest) -> "Patches":
        """The patches of an artifact's vision tower."""
        if isinstance(manifest, LlavaManifest):
            llava = manifest.vision
            first = llava.select_strategy == "full"
            return cls(llava.image_size, llava.patch_size, llava.tower_tokens, first)
        assert isinstance(manifest, EncoderManifest)
        tower = manifest.vision
        return cls(tower.image_size, tower.patch_size, tower.tokens, class_token=True)


def kept_picture(
    view: Image.Image, patches: Patches, kept: NDArray[np.int64], place: str
) -> KeptPicture:
    """Dim the dropped patches.

    Args:
        view: the model's input, square, ``image_size`` pixels wide.
        patches: the grid of its tokens.
        kept: which of the image's tokens ``0..T-1`` were kept.
        place: name of the drop place.
    """
    grid = patches.image_size // patches.patch_size
    shown_at = kept - 1 if patches.class_token else kept
    stays = np.zeros(grid * grid, dtype=bool)
    stays[shown_at[shown_at >= 0]] = True
    mask = np.kron(stays.reshape(grid, grid), np.ones((patches.patch_size,) * 2, dtype=bool))
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32)  # [H, W, 3]
    side = mask.shape[0]  # image_size, unless the patches leave a margin
    shown = np.zeros(pixels.shape[:2], dtype=bool)
    shown[:side, :side] = mask
    grey = pixels.mean(axis=-1, keepdims=True)
    faded = (1 - DIM) * grey + DIM * PAPER
    drawn = np.where(shown[..., None], pixels, faded).round().astype(np.uint8)
    return KeptPicture(place, Image.fromarray(drawn), int(kept.size), patches.tokens)


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a ``data:`` address, so that the page fetches nothing."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WEBP", quality=96)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
