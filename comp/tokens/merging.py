"""Merge dropped tokens: each into its most similar kept one, or all into the weakest kept one.

No token is merged into the one that always stays. A merged token takes the place of a kept one, so that the
number of tokens left does not change. The exported graphs compute the same
(``export/graph/token_merging.py``).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comp.tokens.state import TokenState

FLOOR = 1e-6  # added to scores as weights, so that tokens of score 0 have a mean


@dataclass(frozen=True)
class Dropped:
    """A completed drop: the tokens before, those left, and the indices ``[B, K]`` of these."""

    before: TokenState
    left: TokenState
    taken: Tensor

    def with_rows(self, weights: Tensor) -> TokenState:
        """Tokens left, with states that mix those before by ``weights [B, K, N]``."""
        states = weights.to(self.before.states.dtype) @ self.before.states
        return replace(self.left, states=states)

    @property
    def itself(self) -> Tensor:
        """Whether a token left is the token before at an index, ``[B, K, N]``; false for padding."""
        places = torch.arange(self.before.alive.shape[1], device=self.taken.device)
        return (self.taken[..., None] == places) & (self.left.alive > 0)[..., None]

    @property
    def stays(self) -> Tensor:
        """Whether a token left is the one that always stays, ``[B, K, 1]``."""
        places = torch.arange(self.taken.shape[1], device=self.taken.device)
        return (places == self.left.query[:, None])[..., None]


def merge_similar(dropped: Dropped, similarity: Tensor) -> TokenState:
    """Merge each dropped token into the most similar kept one: the mean, weighted by sizes (Turbo, ToMe).

    Args:
        dropped: the drop.
        similarity: similarities of the tokens before ``[B, N, N]``.
    """
    before, itself = dropped.before, dropped.itself
    kept = itself.any(1, keepdim=True)  # [B, 1, N]
    takes = (dropped.left.alive > 0)[..., None] & ~dropped.stays
    index = dropped.taken[..., None].expand(-1, -1, similarity.shape[-1])
    near = torch.where(takes, similarity.gather(1, index), -2.0)  # [B, K, N]
    rows = torch.arange(near.shape[1], device=near.device)[:, None]
    joins = (near.argmax(1, keepdim=True) == rows) & takes & ~kept & (before.alive > 0)[:, None]
    size = torch.ones_like(before.alive) if before.size is None else before.size
    weights = (itself | joins) * size[:, None]
    total = weights.sum(-1)
    left = dropped.with_rows(weights / total.clamp(min=FLOOR)[..., None])
    return replace(left, size=total)


def merge_into_one(dropped: Dropped, importance: Tensor) -> TokenState:
    """Merge all dropped tokens and the weakest kept one: the mean, weighted by scores (MADTP).

    Args:
        dropped: the drop.
        importance: importance of the tokens before ``[B, N]``, at least 0.
    """
    before, itself = dropped.before, dropped.itself
    kept = itself.any(1)  # [B, N]
    of_kept = torch.where(
        (dropped.left.alive > 0) & ~dropped.stays[..., 0],
        importance.gather(1, dropped.taken),
        torch.inf,
    )
    # The last of equal ones: rankings prefer the first.
    lowest = of_kept.amin(1, keepdim=True)
    rows = torch.arange(of_kept.shape[1], device=kept.device)
    weakest = torch.where((of_kept == lowest) & lowest.isfinite(), rows, -1).amax(1, keepdim=True)
    is_weakest = (rows == weakest)[..., None]  # [B, K, 1]
    group = (~kept & (before.alive > 0))[:, None] | (itself & is_weakest)
    shares = group * (importance + FLOOR)[:, None]
    mean = shares / shares.sum(-1, keepdim=True).clamp(min=FLOOR)
    return dropped.with_rows(torch.where(is_weakest, mean, itself.to(mean.dtype)))
