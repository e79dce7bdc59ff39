"""Rank tokens in a decoder as FastV, PyramidDrop and DART do, which are compared with CoMP.

Eq. 6 is in ``comp.importance.tokens``. Every ranking gives each token an importance in [0, 1]; higher ones
stay. Removed heads are ignored, so that a masked model and a slim one rank tokens equally.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.plan import PIVOTS
from comp.tokens.state import TEXT, VISION

FARTHEST = 2.0  # more than any cosine


def mean_attention(scores: Tensor, head_mask: Tensor) -> Tensor:
    """Attention that each token receives from one query, mean over heads (FastV, PyramidDrop).

    Args:
        scores: attention logits of the query, ``[B, H, N]``; ``-inf``-like where not seen.
        head_mask: soft mask of each query head, ``[H]``.

    Returns:
        ``[B, N]``.
    """
    received = torch.softmax(scores.float(), dim=-1) * head_mask[:, None]
    return received.sum(1) / head_mask.sum()


def diversity(
    key: Tensor, group_mask: Tensor, normed: Tensor, kind: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor]:
    """Dissimilarity of each token to a few pivot tokens (DART).

    The pivots are the 4 image and the 4 text tokens whose keys have the greatest L1 norm. They rank
    first; the others rank by their smallest cosine to a pivot. DART keeps ``P ∪ {x: min_p cos(p, x) ≤ ε}``:
    the first tokens of this order are that set, so that a keep ratio corresponds to an ε.

    Args:
        key: rotated keys of the block before the place, ``[B, Hkv, N, hd]``.
        group_mask: soft mask of each KV head, ``[Hkv]``.
        normed: states as the next block's norm gives them, ``[B, N, d]``.
        kind: ``VISION``, ``TEXT`` or another, ``[B, N]``; others are no pivots.
        alive: presence, ``[B, N]``.

    Returns:
        Importance ``[B, N]``, and the relative margin ``[B]`` of the weakest pivot's norm over the next
        token's: if it is within rounding, so is the ranking.
    """
    norm = (key.float().abs().sum(-1) * group_mask[:, None]).sum(1)  # [B, N]
    pivot = torch.zeros_like(norm, dtype=torch.bool)
    margin = torch.full_like(norm[:, 0], torch.inf)
    for token_kind in (VISION, TEXT):
        mine = (kind == token_kind) & (alive > 0)
        ranked, order = torch.where(mine, norm, -1.0).sort(dim=1, descending=True, stable=True)
        pivot |= mine & (order.argsort(1) < PIVOTS)
        if ranked.shape[1] > PIVOTS:
            weakest, next_best = ranked[:, PIVOTS - 1], ranked[:, PIVOTS]
            gap = (weakest - next_best) / weakest.clamp(min=1e-12)
            margin = torch.where(next_best >= 0, margin.minimum(gap), margin)
    most = int(pivot.sum(1).max())
    places = pivot.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]  # [B, P]
    unit = F.normalize(normed.float(), dim=-1)
    pivots = unit.gather(1, places[..., None].expand(-1, -1, unit.shape[-1]))
    cosine = torch.einsum("bnd,bpd->bnp", unit, pivots)
    least = cosine.masked_fill(~pivot.gather(1, places)[:, None], FARTHEST).amin(2)
    return (1 - least) / 4 + pivot * 0.5, margin
