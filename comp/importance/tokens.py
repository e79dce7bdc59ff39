"""Compute the importance of tokens: the attention that they receive (Eq. 6 and 7)."""

import torch
from torch import Tensor


def received_attention(scores: Tensor, head_mask: Tensor, calibrated: bool) -> Tensor:
    """Attention that each token receives from the strongest head (Eq. 6, one query).

    Args:
        scores: attention logits of the ranking query, ``[B, H, N]``; ``-inf``-like where not seen.
        head_mask: soft mask of each query head, ``[H]``.
        calibrated: Eq. 7 (CIT): apply the mask to the attention itself. Otherwise masked heads take
            part with their logits flattened, as masking them in the forward pass would do.

    Returns:
        ``[B, N]``.
    """
    if calibrated:
        return (torch.softmax(scores.float(), dim=-1) * head_mask[:, None]).amax(1)
    seen = scores > -1e8
    flattened = torch.where(seen, scores.float() * head_mask[:, None], scores.float())
    return torch.softmax(flattened, dim=-1).amax(1)
