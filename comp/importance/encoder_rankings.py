"""How encoders rank tokens at a drop place: attention received, or as Turbo, MADTP and CrossGET do.

Importances are in [0, 1]; that of the token which always stays means nothing. The graphs compute the
same (``export/graph/encoder_rankings.py``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.errors import CompExportError
from comp.plan import Ranking
from comp.tokens.attention import NEVER
from comp.tokens.state import TokenState

FLAT = 1e-6  # scores that differ by less than this are all the same
FAR = 1e4  # beyond every score
NONE = -3.0  # similarity to a token that is not there: below every cosine


@dataclass(frozen=True)
class AttentionRecord:
    """What the attention of a block leaves to rank by.

    Attributes:
        scores: logits ``[B, H, N, N]`` float32, biases added.
        key: ``[B, H, N, hd]``.
        mixed: the heads' outputs ``[B, N, H, hd]``.
        head_mask: soft mask of each head, ``[H]``; a masked head has no part in any score.
        tokens: the tokens.
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
        """Which tokens are present and may go, ``[B, N]``."""
        places = torch.arange(self.tokens.alive.shape[1], device=self.tokens.alive.device)
        return (self.tokens.alive > 0) & (places != self.tokens.query[:, None])


def importance_of(
    ranking: Ranking,
    record: AttentionRecord,
    calibrated: bool,
    responses: Tensor | None = None,
) -> Tensor:
    """Importance ``[B, N]``.

    Args:
        ranking: how.
        record: what the attention leaves.
        calibrated: CIT, of ``received``.
        responses: of the tokens to the entries of a dictionary ``[B, N, T]``, for ``aligned``.

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
    """Attention each token receives, the strongest head counting (Eq. 6): the mean over queries.

    Args:
        scores: attention logits ``[B, H, N, N]``, biases added.
        alive: presence of the tokens ``[B, N]``; absent ones do not ask and receive nothing.
        head_mask: soft mask of each head, ``[H]``.
        calibrated: Eq. 7 (CIT): the mask applies to the attention itself. Otherwise masked heads take
            part with flattened logits, as masking them in the forward pass would do.

    Returns:
        ``[B, N]``, at most 1.
    """
    mask = head_mask[:, None, None]
    if calibrated:
        attention = torch.softmax(scores, dim=-1) * mask
    else:
        attention = torch.softmax(torch.where(scores > NEVER / 10, scores * mask, scores), dim=-1)
    strongest = attention.amax(1)  # [B, N, N]
    asking = alive / alive.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.einsum("bn,bnm->bm", asking.to(strongest.dtype), strongest) * (alive > 0)


def informativity(record: AttentionRecord) -> Tensor:
    """Turbo: attention of the token that stays minus mutual redundancy, ``[B, N]``.

    With a the attention, the mean over heads, stretched to [0, 1] over the tokens that may go, and r the
    largest cosine similarity to another token that may go: (a − r + 1) / 3, which orders as a − r does
    and is in [0, 1].
    """
    others = record.others
    weight = record.head_mask / record.head_mask.sum().clamp(min=FLAT)
    attention = torch.einsum("h,bhn->bn", weight, _of_query(record))
    redundancy = torch.where(_pairs(others), similarity(record), -1.0).amax(2)
    found = (stretched(attention, others) - redundancy + 1) / 3
    return torch.where(others, found.clamp(0, 1), 0.0)


def similarity(record: AttentionRecord) -> Tensor:
    """Cosine similarities of the tokens by their keys, as ToMe has them, ``[B, N, N]``."""
    unit = _unit(record.key, record.head_mask)
    return unit @ unit.transpose(1, 2)


def matched(record: AttentionRecord) -> Tensor:
    """CrossGET's complete-graph soft matching, ``[B, N]``: (g − m + 2) / 6, in [0, 1].

    Tokens that may go stand in the order of their largest cosine to another such token, of equal ones the
    first first; m is the largest of a token to those behind it (none: −3), so that of two that are each
    other's nearest one alone is to go. g is the cosine of its key to the query of the token that stays.
    """
    others = record.others
    alike = similarity(record)
    alike = (alike + alike.transpose(1, 2)) / 2  # the same to the last bit from both sides
    near = torch.where(_pairs(others), alike, NONE)
    best, places = near.amax(2), torch.arange(others.shape[1], device=others.device)
    mine, theirs = best[:, :, None], best[:, None]
    behind = (theirs < mine) | ((theirs == mine) & (places > places[:, None]))
    nearest = torch.where(behind, near, NONE).amax(2)
    guide = _unit(record.query, record.head_mask)[
        torch.arange(len(others), device=others.device), record.tokens.query
    ]
    guided = torch.einsum("bnd,bd->bn", _unit(record.key, record.head_mask), guide)
    found = (guided - nearest + 2) / 6
    return torch.where(others, found.clamp(0, 1), 0.0)


def three_scores(record: AttentionRecord, responses: Tensor) -> Tensor:
    """MADTP: the mean of three scores, each stretched to [0, 1] over the tokens that may go, ``[B, N]``.

    Attention received (Eq. 6), the strongest response to an entry of the dictionary, and the attention
    of the token that stays, its heads weighted by the length of the token's own output in each.
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
    """``scores [B, N]`` moved and scaled to [0, 1] over the ``others [B, N]``; 0 elsewhere."""
    low = torch.where(others, scores, FAR).amin(1, keepdim=True)
    high = torch.where(others, scores, -FAR).amax(1, keepdim=True)
    return torch.where(others, (scores - low) / (high - low).clamp(min=FLAT), 0.0)


def _pairs(others: Tensor) -> Tensor:
    """Which two different tokens may both go, ``[B, N, N]``."""
    different = ~torch.eye(others.shape[1], dtype=torch.bool, device=others.device)
    return others[:, :, None] & others[:, None] & different


def _unit(x: Tensor, head_mask: Tensor) -> Tensor:
    """``[B, H, N, hd]`` as one vector of length 1 of each token, masked heads left out: ``[B, N, H·hd]``."""
    return F.normalize((x.transpose(1, 2).float() * head_mask[:, None]).flatten(2), dim=-1)


def _of_query(record: AttentionRecord) -> Tensor:
    """Attention of the token that stays to all others, ``[B, H, N]``."""
    _, heads, _, count = record.scores.shape
    row = record.tokens.query[:, None, None, None].expand(-1, heads, 1, count)
    return torch.softmax(record.scores.gather(2, row)[:, :, 0], dim=-1)
