"""Tell whether a picture resembles the data of the embedded models, EmojiScenes, by simple statistics.

The embedded models know pictures of 168 emoji and nothing else. The test is cheap and blind to content: it
compares colours, noise and edges with those of scenes of the training split, which ``likeness.json`` holds
(``python -m demo.likeness`` writes it). What passes may still show things that the models have never seen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.scenes import IMAGE_SIZE, render
from comp.data.emoji_scenes.sprites import sprites
from comp.data.images import ImageSource, read_image

SCENES = 512  # to compare with
FIRST = 4  # of them, stored whole: they show that the file fits this code
STORED = "likeness.json"
USUAL = 0.99  # share of the data that lies below the limit
MARGIN = 1.25  # times the distance below which that share lies
EDGE = 24.0  # a larger difference of neighbouring pixels, of 255, is an edge
FLAT = 3.0  # a smaller one is none


@dataclass(frozen=True)
class Likeness:
    """How far a picture is from the data.

    Attributes:
        distance: Mahalanobis distance of its statistics from those of the data.
        limit: distance that nearly all of the data is below.
    """

    distance: float
    limit: float

    @property
    def unlike(self) -> bool:
        """Whether the picture is outside of the data."""
        return self.distance > self.limit


def likeness(image: ImageSource) -> Likeness:
    """Compare a picture with the data.

    Raises:
        CompExportError: as ``read_image``.
    """
    mean, inverse, limit = _data()
    return Likeness(_distance(statistics(read_image(image)), mean, inverse), limit)


def notice(model: str, images: Sequence[ImageSource]) -> str:
    """A sentence for the visitor if a picture is unlike the data of an embedded model; else empty.

    Args:
        model: name of the model, as in its manifest.
        images: the pictures of the request.

    Raises:
        CompExportError: as ``read_image``.
    """
    if model not in EMBEDDED_MODELS:
        return ""
    unlike = [each for each in map(likeness, images) if each.unlike]
    if not unlike:
        return ""
    worst = max(unlike, key=lambda each: each.distance)
    return (
        f"This picture is unlike what {model} knows, drawn scenes of {len(sprites())} emoji: expect "
        "answers without meaning. (Its colours and edges are compared with those of the training data: "
        f"distance {worst.distance:.1f}, and {100 * USUAL:.0f} % of the data lie below {worst.limit:.1f}.)"
    )


EMBEDDED_MODELS = frozenset(
    (
        *("tiny-llava", "tiny-smolvlm", "tiny-clip", "tiny-blip-vqa", "tiny-blip-caption"),
        *("tiny-blip-retrieval", "tiny-blip-nlvr"),
    )
)


def statistics(picture: Image.Image) -> NDArray[np.float64]:
    """Statistics of a picture at the size of the data.

    Brightness and its spread, saturation and its spread, colourfulness, shares of edges and of flat
    pixels, mean difference of neighbours, and the share of the commonest of 64 colours.
    """
    small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float64)  # [H, W, 3]
    light = pixels.mean(axis=-1)
    saturation = pixels.max(axis=-1) - pixels.min(axis=-1)
    across = np.abs(np.diff(light, axis=1))[:-1]
    down = np.abs(np.diff(light, axis=0))[:, :-1]
    change = np.maximum(across, down)
    coarse = (pixels // 64).astype(np.int64) @ np.array([16, 4, 1])
    colours = np.bincount(coarse.ravel(), minlength=64) / coarse.size
    return np.array(
        [
            light.mean(),
            light.std(),
            saturation.mean(),
            saturation.std(),
            np.hypot(*(_opponents(pixels))),
            (change > EDGE).mean(),
            (change < FLAT).mean(),
            np.log1p(change.mean()),
            np.log1p(np.median(change)),
            colours.max(),
        ]
    )


def _opponents(pixels: NDArray[np.float64]) -> tuple[float, float]:
    """Spreads of red against green, and of yellow against blue."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return float((red - green).std()), float(((red + green) / 2 - blue).std())


@cache
def _data() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean, inverse covariance and limit of the distance, as stored."""
    stored = json.loads((files("demo") / STORED).read_text(encoding="utf-8"))
    return np.array(stored["mean"]), np.array(stored["inverse"]), float(stored["limit"])


def statistics_of_data(count: int) -> NDArray[np.float64]:
    """The statistics of the first scenes of the training split, ``[count, 10]``."""
    scenes = EmojiScenes("train")
    return np.stack([statistics(render(scenes.scene(i)[0])[0]) for i in range(count)])


def fitted(seen: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean, inverse covariance and limit of the distance, of statistics ``[N, 10]``."""
    mean = seen.mean(axis=0)
    inverse = np.linalg.pinv(np.cov(seen, rowvar=False)).astype(np.float64)
    distances = [_distance(row, mean, inverse) for row in seen]
    return mean, inverse, MARGIN * float(np.quantile(distances, USUAL))


def _distance(
    row: NDArray[np.float64], mean: NDArray[np.float64], inverse: NDArray[np.float64]
) -> float:
    return float(np.sqrt((row - mean) @ inverse @ (row - mean)))


def _main() -> None:
    """Write the statistics of the data beside this module."""
    seen = statistics_of_data(SCENES)
    mean, inverse, limit = fitted(seen)
    stored = {
        "scenes": SCENES,
        "mean": mean.tolist(),
        "inverse": inverse.tolist(),
        "limit": limit,
        "first": seen[:FIRST].tolist(),
    }
    path = Path(__file__).with_name(STORED)
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
