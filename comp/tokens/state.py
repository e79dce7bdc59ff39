"""State of the tokens that are present in a forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

VISION, TEXT, ANSWER = 0, 1, 2


@dataclass(frozen=True)
class TokenState:
    """The tokens that are present in a forward pass.

    Attributes:
        states: hidden states ``[B, N, d]``.
        position: position ids ``[B, N]``; kept, never renumbered.
        kind: ``VISION``, ``TEXT`` or ``ANSWER``, ``[B, N]``.
        alive: presence in [0, 1], ``[B, N]``: 0 for padding and dropped tokens.
        index: index in the original sequence, ``[B, N]``.
        query: place of the last instruction token, or of an encoder's token that always stays, ``[B]``.
        size: number of tokens merged into each, including itself, ``[B, N]``; ``None`` before a merge.
    """

    states: Tensor
    position: Tensor
    kind: Tensor
    alive: Tensor
    index: Tensor
    query: Tensor
    size: Tensor | None = None

    def drop(self, kept: Tensor) -> tuple["TokenState", Tensor]:
        """Gather the tokens with ``kept > 0``, in order; shorter rows are padded with absent ones.

        Returns:
            The new state and the gather indices ``[B, K]``.
        """
        width = int((kept > 0).sum(1).max())
        taken = (kept <= 0).to(torch.int8).argsort(dim=1, stable=True)[:, :width].sort(1).values
        return (
            TokenState(
                self.states.gather(1, taken[..., None].expand(-1, -1, self.states.shape[-1])),
                self.position.gather(1, taken),
                self.kind.gather(1, taken),
                kept.gather(1, taken),
                self.index.gather(1, taken),
                (taken < self.query[:, None]).sum(1),
                None if self.size is None else self.size.gather(1, taken),
            ),
            taken,
        )
