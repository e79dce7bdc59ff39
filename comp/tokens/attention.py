"""Compute attention in the reference models: any device, additive bias, grouped-query heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e9  # finite, so that a row that sees nothing stays free of NaN


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention.

    Args:
        query: ``[B, H, N, hd]``; key, value: ``[B, Hkv, M, hd]`` with H a multiple of Hkv.
        bias: added to the logits, broadcastable to ``[B, H, N, M]``.
        scale: multiplies the logits.

    Returns:
        ``[B, N, H, hd]``.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if bias is not None:
        bias = bias.to(query.dtype)
    if query.device.type != "cpu" or query.dtype == torch.float32:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    else:
        # In bf16 on a CPU, plain attention trains a third faster than the fused one.
        scores = (query * scale) @ key.transpose(-1, -2)
        scores = scores if bias is None else scores + bias
        mixed = torch.softmax(scores, dim=-1, dtype=scores.dtype) @ value
    return mixed.transpose(1, 2)


def presence_bias(alive: Tensor) -> Tensor:
    """Bias on keys ``log(alive)``, ``[B, 1, 1, M]``: 0 for present tokens, NEVER for dropped ones.

    A token of presence p keeps the share p of its attention weight before normalisation.
    """
    return torch.where(alive > 0, alive.clamp(min=1e-9).log(), NEVER)[:, None, None, :]


def causal_bias(queries: int, keys: int, device: torch.device) -> Tensor:
    """Causal bias ``[1, 1, queries, keys]``: the last query sees every key, each earlier one a key fewer."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return torch.where(seen, 0.0, NEVER)[None, None]
