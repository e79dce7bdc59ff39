"""Recall of retrieval: whether one's own is among the best K, both ways."""

from collections.abc import Sequence

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)


def ranks(scores: Tensor, owner: Sequence[int]) -> tuple[Tensor, Tensor]:
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
        raise ValueError(f"scores {tuple(scores.shape)} for {len(owner)} texts")
    own = torch.as_tensor(owner, device=scores.device)
    mine = own[None] == torch.arange(len(scores), device=scores.device)[:, None]  # [I, T]
    if not bool(mine.any(1).all()):
        lone = int((~mine.any(1)).nonzero()[0])
        raise ValueError(f"image {lone} has no text")
    best = scores.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
    of_images = ((scores >= best) & ~mine).sum(1)
    right = scores.gather(0, own[None])
    of_texts = (scores >= right).sum(0) - 1
    return of_images, of_texts


def recall_at(places: Tensor, depth: int) -> int:
    """How many of these places are among the first ``depth``."""
    return int((places < depth).sum())
