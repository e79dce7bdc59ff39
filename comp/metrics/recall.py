"""Compute recall@K of retrieval, from images to texts and back."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DEPTHS = (1, 5, 10)
Places = NDArray[np.int64]


def ranks(scores: NDArray[np.floating], owner: Sequence[int]) -> tuple[Places, Places]:
    """Return the ranks of the matching texts and images, from 0; ties count against them.

    Args:
        scores: of each image with each text, ``[I, T]``.
        owner: index of each text's image, ``T`` of them; an image may have several texts.

    Returns:
        Rank of the best matching text of each image ``[I]``, and rank of the image of each text ``[T]``.

    Raises:
        ValueError: the numbers do not match, or an image has no text.
    """
    if scores.ndim != 2 or scores.shape[1] != len(owner) or not len(owner):
        raise ValueError(f"scores {scores.shape} for {len(owner)} texts")
    return ranks_of_images(scores, owner), ranks_of_texts(scores.T, owner)


def ranks_of_images(of_texts: NDArray[np.floating], owner: Sequence[int]) -> Places:
    """Rank of the best matching text of each image, from scores ``[I, T]``; see ``ranks``."""
    mine = np.asarray(owner)[None] == np.arange(len(of_texts))[:, None]  # [I, T]
    if not mine.any(1).all():
        raise ValueError(f"image {int(np.flatnonzero(~mine.any(1))[0])} has no text")
    best = np.where(mine, of_texts, -np.inf).max(1, keepdims=True)
    places: Places = ((of_texts >= best) & ~mine).sum(1)
    return places


def ranks_of_texts(of_images: NDArray[np.floating], owner: Sequence[int]) -> Places:
    """Rank of the image of each text, from scores ``[T, I]``; see ``ranks``."""
    right = np.take_along_axis(of_images, np.asarray(owner)[:, None], axis=1)
    places: Places = (of_images >= right).sum(1) - 1
    return places


def recall_at(places: Places, depth: int) -> int:
    """Number of ranks below ``depth``."""
    return int((places < depth).sum())
