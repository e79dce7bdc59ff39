"""Recall of retrieval: whether one's own is among the best K, both ways."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DEPTHS = (1, 5, 10)
Places = NDArray[np.int64]


def ranks(scores: NDArray[np.floating], owner: Sequence[int]) -> tuple[Places, Places]:
    """Where one's own comes, counted from 0; ties go against it.

    Args:
        scores: of each image with each text, ``[I, T]``.
        owner: the image of each text, ``T`` of them; an image may have several.

    Returns:
        Of each image the place of the best of its texts ``[I]``, and of each text the place of its image
        ``[T]``.

    Raises:
        ValueError: counts that do not fit, or an image without a text.
    """
    if scores.ndim != 2 or scores.shape[1] != len(owner) or not len(owner):
        raise ValueError(f"scores {scores.shape} for {len(owner)} texts")
    return ranks_of_images(scores, owner), ranks_of_texts(scores.T, owner)


def ranks_of_images(of_texts: NDArray[np.floating], owner: Sequence[int]) -> Places:
    """Of each image the place of the best of its texts, from scores ``[I, T]``; as ``ranks``."""
    mine = np.asarray(owner)[None] == np.arange(len(of_texts))[:, None]  # [I, T]
    if not mine.any(1).all():
        raise ValueError(f"image {int(np.flatnonzero(~mine.any(1))[0])} has no text")
    best = np.where(mine, of_texts, -np.inf).max(1, keepdims=True)
    places: Places = ((of_texts >= best) & ~mine).sum(1)
    return places


def ranks_of_texts(of_images: NDArray[np.floating], owner: Sequence[int]) -> Places:
    """Of each text the place of its image, from scores ``[T, I]``; as ``ranks``."""
    right = np.take_along_axis(of_images, np.asarray(owner)[:, None], axis=1)
    places: Places = (of_images >= right).sum(1) - 1
    return places


def recall_at(places: Places, depth: int) -> int:
    """How many of these places are among the first ``depth``."""
    return int((places < depth).sum())
