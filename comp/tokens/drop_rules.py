"""Rules that decide which tokens stay at a drop place (Eq. 1), from their importance (Eq. 6 and 7).

The query token and answer tokens always stay.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from comp.plan import KEEP_UNIT, DropPlan, Merge, Place, Ranking
from comp.tokens.state import ANSWER, TEXT, VISION

ALWAYS = 2.0  # added to the query token's importance; importances are at most 1


class DropRule(ABC):
    """Decides at one drop place which tokens stay."""

    @property
    def ranking(self) -> Ranking:
        """Ranking that gives the importance."""
        return "received"

    @property
    def merge(self) -> Merge:
        """Merging of the dropped tokens."""
        return "none"

    @abstractmethod
    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        """Return the new ``alive [B, N]`` in [0, 1]; importance, kind and alive ``[B, N]``, query ``[B]``."""


@dataclass(frozen=True)
class ThresholdRule(DropRule):
    """Keeps tokens above a threshold on importance relative to the mean of their kind (Eq. 1)."""

    vision: float
    text: float

    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        kept = alive.clone()
        for token_kind, threshold in ((VISION, self.vision), (TEXT, self.text)):
            mine = kind == token_kind
            present = mine * alive
            mean = (importance * present).sum(1) / present.sum(1).clamp(min=1)
            relative = importance / mean.clamp(min=1e-12)[:, None]
            kept = torch.where(mine & (relative <= threshold), 0.0, kept)
            # The strongest token of a kind stays whatever the threshold.
            best = torch.where(mine & (alive > 0), importance, -1.0).argmax(1, keepdim=True)
            best_alive = torch.where(
                mine.gather(1, best), alive.gather(1, best), kept.gather(1, best)
            )
            kept = kept.scatter(1, best, best_alive)
        return kept.scatter(1, query[:, None], alive.gather(1, query[:, None]))


@dataclass(frozen=True)
class RatioRule(DropRule):
    """Keeps ``ceil(ratio * n)`` of the n tokens of each kind that reached the place.

    Within a stage, tokens that the ``previous`` ratios (vision, text) would have kept are not dropped at
    once: they keep the share ``softness`` of their presence, which decays from 1 to 0.
    """

    vision_keep_ratio: float
    text_keep_ratio: float
    previous: tuple[float, float] = (0.0, 0.0)
    softness: float = 0.0
    ranking: Ranking = "received"
    merge: Merge = "none"

    @classmethod
    def from_plan(cls, drop: DropPlan) -> "RatioRule":
        return cls(
            drop.vision_keep_ratio, drop.text_keep_ratio, ranking=drop.ranking, merge=drop.merge
        )

    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        importance = importance.scatter_add(
            1, query[:, None], torch.full_like(query, ALWAYS, dtype=importance.dtype)[:, None]
        )
        kept = torch.where(kind == ANSWER, alive, 0.0)
        ratios = (self.vision_keep_ratio, self.text_keep_ratio)
        for token_kind, ratio, old in zip((VISION, TEXT), ratios, self.previous, strict=True):
            mine = (kind == token_kind) & (alive > 0)
            count = mine.sum(1, keepdim=True)
            order = torch.where(mine, importance, -1.0).argsort(dim=1, descending=True, stable=True)
            rank = order.argsort(1)
            soft = torch.where(rank < _keep_counts(count, old), self.softness, 0.0)
            share = torch.where(rank < _keep_counts(count, ratio), 1.0, soft)
            kept = torch.where(mine, alive * share, kept)
        return kept


def _keep_counts(count: Tensor, ratio: float) -> Tensor:
    """``comp.plan.keep_count`` of a tensor."""
    return -(-count * round(ratio * KEEP_UNIT) // KEEP_UNIT)


@dataclass(frozen=True)
class RaisedRule(DropRule):
    """Keeps one kind of token by a threshold that is being raised, the other by its ratio.

    Attributes:
        kind: the kind under the threshold.
        held: the ratios before.
    """

    kind: int
    threshold: float
    held: RatioRule

    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        raised = ThresholdRule(self.threshold, self.threshold)
        return torch.where(
            kind == self.kind,
            raised.keep(importance, kind, alive, query),
            self.held.keep(importance, kind, alive, query),
        )


DropRules = dict[Place, DropRule]
"""Rules by place."""


def rules_from_plan(drops: tuple[DropPlan, ...]) -> DropRules:
    return {drop.place: RatioRule.from_plan(drop) for drop in drops}
