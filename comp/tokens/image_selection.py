"""Select an image's tokens after a vision tower: dominant and contextual ones (VisionZip).

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (CVPR 2025).
The exported graph computes the same (``export/graph/image_selection.py``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.plan import ImageSelection


@dataclass(frozen=True)
class Selected:
    """The tokens left of each image: the dominant ones, then the contextual ones, each in order.

    Attributes:
        states: ``[I, K, d]``.
        places: index of each token, of a contextual one that of its target, ``[I, K]``.
        scores: attention to all tokens of the tower (``tower_attention``), ``[I, T]``.
    """

    states: Tensor
    places: Tensor
    scores: Tensor


def tower_attention(
    query: Tensor, key: Tensor, head_mask: Tensor, scale: float, class_token: bool = True
) -> Tensor:
    """Attention to every token of a tower, mean over heads: ``[I, N]``.

    It is that of [CLS] or, in a tower without [CLS], the mean over all tokens, as VisionZip does for SigLIP.

    Args:
        query, key: ``[I, H, N, hd]``.
        head_mask: soft mask of each head ``[H]``; a masked head is ignored.
        scale: scale of the logits.
        class_token: whether the first token is [CLS].
    """
    asking = query[:, :, :1] if class_token else query
    logits = torch.einsum("ihqd,ihnd->ihqn", asking.float(), key.float()) * scale
    weight = head_mask / head_mask.sum().clamp(min=1e-6)
    return torch.einsum("h,ihn->in", weight.float(), torch.softmax(logits, dim=-1).mean(2))


def mean_key(key: Tensor, head_mask: Tensor) -> Tensor:
    """Sum of the keys ``[I, H, N, hd]`` over the heads that are left: ``[I, N, hd]``.

    The sum replaces the mean because only its direction is used.
    """
    return torch.einsum("h,ihnd->ind", head_mask.float(), key.float())


def select_tokens(
    states: Tensor, scores: Tensor, key: Tensor, selection: ImageSelection
) -> Selected:
    """Keep the dominant tokens, and merge all others into the contextual ones.

    Targets are strided over the others (``ImageSelection.target_places``). Each other token joins the target
    with the most similar key. A contextual token is the mean of a target and the tokens that joined it.

    Args:
        states: ``[I, T, d]``.
        scores: scores that choose the dominant tokens ``[I, T]``; the first of equal ones comes first.
        key: keys that tokens are compared by ``[I, T, k]``.
        selection: numbers of dominant and contextual tokens.
    """
    count = selection.tower_tokens
    order = scores.argsort(dim=1, descending=True, stable=True)
    dominant = order[:, : selection.dominant].sort(1).values
    if selection.contextual == 0:
        return Selected(_rows(states, dominant), dominant, scores)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, dominant, value=True)
    rest = chosen.to(torch.int8).argsort(dim=1, stable=True)[:, : count - selection.dominant]
    targets = rest[:, selection.target_places]  # [I, C]
    unit = F.normalize(key.float(), dim=-1)
    near = torch.einsum("itk,ick->itc", unit, _rows(unit, targets))
    joined = F.one_hot(near.argmax(-1), selection.contextual).to(scores.dtype)  # [I, T, C]
    joined = joined * ~chosen[..., None]
    itself = torch.arange(count, device=targets.device)[:, None] == targets[:, None]  # [I, T, C]
    is_target = itself.any(-1, keepdim=True)
    groups = torch.where(is_target, itself.to(joined.dtype), joined)
    shares = (groups / groups.sum(1, keepdim=True)).to(states.dtype)
    contextual = torch.einsum("itc,itd->icd", shares, states)
    left = torch.cat([_rows(states, dominant), contextual], dim=1)
    return Selected(left, torch.cat([dominant, targets], dim=1), scores)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """``x [I, T, d]`` at ``places [I, K]``."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
