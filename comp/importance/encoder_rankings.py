"""Rank tokens at a drop place of an encoder: by attention received, or as Turbo, MADTP and CrossGET do.

Importances are in [0, 1]; that of the token which always stays has no meaning. The exported graphs compute
the same (``export/graph/encoder_rankings.py``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.errors import CompExportError
from comp.importance.tokens import received_attention
from comp.plan import Ranking
from comp.tokens.state import TokenState

FLAT = 1e-6  # scores that differ by less than this count as equal
FAR = 1e4  # beyond every score
NONE = -3.0  # similarity to a token that is not there: below every cosine


@dataclass(frozen=True)
class AttentionRecord:
    """Attention of a block, recorded to rank tokens by it.

    Attributes:
        scores: logits ``[B, H, N, N]`` float32, biases added.
        key: ``[B, H, N, hd]``.
        mixed: the heads' outputs ``[B, N, H, hd]``.
        head_mask: soft mask of each head, ``[H]``; a masked head is ignored in every score.
        tokens: the tokens that entered the block.
        query: ``[B, H, N, hd]``.
    """

    scores: Tensor
    key: Tensor
    mixed: Tensor
    head_mask: Tensor
    tokens: TokenState
    query: Tensor

    @property
    def others(self) -> Tensor:
        """Whether each token is present and may be dropped, ``[B, N]``."""
        places = torch.arange(self.tokens.alive.shape[1], device=self.tokens.alive.device)
        return (self.tokens.alive > 0) & (places != self.tokens.query[:, None])


def importance_of(
    ranking: Ranking,
    record: AttentionRecord,
    calibrated: bool,
    responses: Tensor | None = None,
) -> Tensor:
    """Importance of each token, ``[B, N]``.

    Args:
        ranking: name of the ranking.
        record: the attention of the block.
        calibrated: whether CIT is on, for ``received``.
        responses: responses of the tokens to the entries of a dictionary ``[B, N, T]``, for ``aligned``.

    Raises:
        CompExportError: ``aligned`` without a dictionary.
    """
    if ranking == "received":
        return attention_received(
            record.scores,
            record.tokens.alive,
            record.head_mask,
            calibrated,
        )
    if ranking == "informativity":
        return informativity(record)
    if ranking == "matched":
        return matched(record)
    if responses is None:
        raise CompExportError(
            "the drops rank tokens by a dictionary, and the model has none: take the checkpoint of "
            "the run, which holds it"
        )
    return three_scores(record, responses)


def attention_received(
    scores: Tensor, alive: Tensor, head_mask: Tensor, calibrated: bool
) -> Tensor:
    """Attention that each token receives from the strongest head (Eq. 6), mean over queries.

    Args:
        scores: attention logits ``[B, H, N, N]``, biases added.
        alive: presence of the tokens ``[B, N]``; absent ones neither query nor receive.
        head_mask: soft mask of each head, ``[H]``.
        calibrated: Eq. 7 (CIT), as of ``received_attention``.

    Returns:
        ``[B, N]``, at most 1.
    """
    strongest = received_attention(scores, head_mask, calibrated)  # [B, N, N]
    asking = alive / alive.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.einsum("bn,bnm->bm", asking.to(strongest.dtype), strongest) * (alive > 0)


def informativity(record: AttentionRecord) -> Tensor:
    """Turbo's informativity: attention of the token that stays minus redundancy, ``[B, N]``.

    ``(a − r + 1) / 3`` in [0, 1], in the order of ``a − r``: a is the attention, mean over heads, stretched
    to [0, 1] over the tokens that may be dropped; r the largest cosine similarity to another such token.
    """
    others = record.others
    weight = record.head_mask / record.head_mask.sum().clamp(min=FLAT)
    attention = torch.einsum("h,bhn->bn", weight, _of_query(record))
    redundancy = torch.where(_pairs(others), similarity(record), -1.0).amax(2)
    importance = (stretched(attention, others) - redundancy + 1) / 3
    return torch.where(others, importance.clamp(0, 1), 0.0)


def similarity(record: AttentionRecord) -> Tensor:
    """Cosine similarities of the tokens' keys, as in ToMe, ``[B, N, N]``."""
    unit = _unit(record.key, record.head_mask)
    return unit @ unit.transpose(1, 2)


def matched(record: AttentionRecord) -> Tensor:
    """CrossGET's complete-graph soft matching, ``[B, N]``: ``(g − m + 2) / 6`` in [0, 1].

    Tokens that may be dropped are ordered by their largest cosine to another such token. m is a token's
    largest cosine to those after it in this order (none: −3), so that of two tokens which are each other's
    nearest only one is dropped. g is the cosine of its key with the query of the token that stays.
    """
    others = record.others
    alike = similarity(record)
    alike = (alike + alike.transpose(1, 2)) / 2  # the same to the last bit from both sides
    near = torch.where(_pairs(others), alike, NONE)
    best, places = near.amax(2), torch.arange(others.shape[1], device=others.device)
    mine, theirs = best[:, :, None], best[:, None]
    is_later = (theirs < mine) | ((theirs == mine) & (places > places[:, None]))
    nearest = torch.where(is_later, near, NONE).amax(2)
    guide = _unit(record.query, record.head_mask)[
        torch.arange(len(others), device=others.device), record.tokens.query
    ]
    guided = torch.einsum("bnd,bd->bn", _unit(record.key, record.head_mask), guide)
    importance = (guided - nearest + 2) / 6
    return torch.where(others, importance.clamp(0, 1), 0.0)


def three_scores(record: AttentionRecord, responses: Tensor) -> Tensor:
    """MADTP's mean of three scores, each stretched to [0, 1] over the tokens that may go, ``[B, N]``.

    The scores are: attention received (Eq. 6); the strongest response to an entry of the dictionary; the
    attention of the token that stays, its heads weighted by the norm of the token's output in each.
    """
    others = record.others
    received = attention_received(
        record.scores,
        record.tokens.alive,
        record.head_mask,
        calibrated=True,
    )
    lengths = record.mixed.float().norm(dim=-1).transpose(1, 2) * record.head_mask[:, None]
    share = lengths / lengths.sum(1, keepdim=True).clamp(min=FLAT)  # [B, H, N]
    pooled = (share * _of_query(record)).sum(1)
    scores = (received, responses.float().amax(-1), pooled)
    return torch.stack([stretched(score, others) for score in scores]).mean(0)


def stretched(scores: Tensor, others: Tensor) -> Tensor:
    """Shift and scale ``scores [B, N]`` to [0, 1] over the ``others [B, N]``; 0 elsewhere."""
    low = torch.where(others, scores, FAR).amin(1, keepdim=True)
    high = torch.where(others, scores, -FAR).amax(1, keepdim=True)
    return torch.where(others, (scores - low) / (high - low).clamp(min=FLAT), 0.0)


def _pairs(others: Tensor) -> Tensor:
    """Whether two different tokens may both be dropped, ``[B, N, N]``."""
    different = ~torch.eye(others.shape[1], dtype=torch.bool, device=others.device)
    return others[:, :, None] & others[:, None] & different


def _unit(x: Tensor, head_mask: Tensor) -> Tensor:
    """One unit vector for each token of ``[B, H, N, hd]``, without masked heads: ``[B, N, H·hd]``."""
    return F.normalize((x.transpose(1, 2).float() * head_mask[:, None]).flatten(2), dim=-1)


def _of_query(record: AttentionRecord) -> Tensor:
    """Attention of the token that stays to all others, ``[B, H, N]``."""
    _, heads, _, count = record.scores.shape
    row = record.tokens.query[:, None, None, None].expand(-1, heads, 1, count)
    return torch.softmax(record.scores.gather(2, row)[:, :, 0], dim=-1)
