"""Compute the importance of tokens: the attention that they receive (Eq. 6 and 7)."""

import torch
from torch import Tensor

from comp.tokens.attention import NEVER


def received_attention(scores: Tensor, head_mask: Tensor, calibrated: bool) -> Tensor:
    """Attention that each token receives from the strongest head (Eq. 6), by query.

    Args:
        scores: attention logits of the queries, ``[B, H, ..., N]``; ``-inf``-like where not seen.
        head_mask: soft mask of each query head, ``[H]``.
        calibrated: Eq. 7 (CIT): apply the mask to the attention itself. Otherwise masked heads take
            part with their logits flattened, as masking them in the forward pass would do.

    Returns:
        ``[B, ..., N]``.
    """
    scores, mask = scores.float(), head_mask.view(-1, *[1] * (scores.ndim - 2))
    if calibrated:
        return (torch.softmax(scores, dim=-1) * mask).amax(1)
    flattened = torch.where(scores > NEVER / 10, scores * mask, scores)
    return torch.softmax(flattened, dim=-1).amax(1)
