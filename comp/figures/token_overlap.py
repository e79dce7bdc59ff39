"""Measure the overlap of tokens that decide the scores of parameters with the important tokens.

As in the paper's Figures 2 and 5, on the dense model, with and without CIP. For a row of a batch and a
block's attention or FFN:

* The **deciding tokens** are the k that contribute most to the scores of its parameters. A score is weight
  magnitude times input norm (Eq. 3); a token's contribution is exact (``token_contributions``). Without CIP
  every token has weight 1, with CIP that of Eq. 4.
* The **important tokens** are the k with the highest importance (Eq. 7): of the block itself for attention,
  of the next block for an FFN, as in CIP. A dense model masks no heads.
* The **overlap** is ``|deciding ∩ important| / k`` with ``k = ceil(n / 4)`` of the n tokens that take part.
  Two random sets share k / n on average: the ``chance``.

Padding, answers and [CLS] take no part: the weight of [CLS] is always 1. Rows of fewer than 4
tokens are left out (short answers in a decoder), and so are sub-layers where most rows are. With CIP the
weights *are* importances, so that part of the overlap is by construction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from comp.adapter import FamilyAdapter, Forwarding
from comp.figures.spread import Spread
from comp.importance.parameters import norm_weights, token_contributions
from comp.masks import BlockKey

TOP = 0.25  # of the tokens that take part
FEWEST = 4
Sublayer = Literal["heads", "channels"]


@dataclass(frozen=True)
class Overlap:
    """Overlap in one sub-layer over all rows: without CIP, with CIP, and of random sets."""

    key: BlockKey
    sublayer: Sublayer
    without_cip: Spread
    with_cip: Spread
    chance: float


def overlap_of(one: Tensor, other: Tensor) -> float:
    """Overlap ``|A ∩ B| / k`` of two sets of k different tokens, each ``[k]``."""
    return float(torch.isin(one, other).sum()) / len(one)


def top_tokens(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the ``count`` candidates with the largest values, ``[count]``; of equal ones, the first.

    Args:
        values: ``[N]``.
        candidates: indices into ``values``, ascending, ``[n]``.
        count: number of candidates to return.
    """
    order = values[candidates].argsort(descending=True, stable=True)
    return candidates[order[:count]]


def ranked_tokens(importance: Tensor, has_cls: bool) -> Tensor:
    """Return the tokens ``[n]`` of one row ``[N]`` that take part, without [CLS], token 0."""
    taking_part = importance > 0
    if has_cls:
        taking_part = taking_part.clone()
        taking_part[0] = False
    return taking_part.nonzero()[:, 0]


@dataclass
class OverlapObserver:
    """Collects overlaps row by row (``comp.adapter.Observer``).

    Attributes:
        magnitude: returns ``m_i`` of the attention's and the FFN's output projection of a block (Eq. 3).
        has_cls: whether token 0 of a block is [CLS].
    """

    magnitude: Callable[[BlockKey], tuple[Tensor, Tensor]]
    has_cls: Callable[[BlockKey], bool]
    _magnitudes: dict[BlockKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _rows: dict[tuple[BlockKey, Sublayer], list[tuple[float, float, float]]] = field(
        default_factory=dict
    )
    _short: dict[tuple[BlockKey, Sublayer], int] = field(default_factory=dict)

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        self._add(key, "heads", mixed, importance)

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        self._add(key, "channels", hidden, importance)

    def overlaps(self) -> tuple[Overlap, ...]:
        """Overlaps by part and block, of sub-layers with enough tokens in at least half of the rows."""
        overlaps = []
        parts = list(dict.fromkeys(part for (part, _), _ in self._rows))

        def place(of: tuple[BlockKey, Sublayer]) -> tuple[int, int, bool]:
            (part, number), sublayer = of
            return parts.index(part), number, sublayer == "channels"

        for key, sublayer in sorted(self._rows, key=place):
            rows = self._rows[key, sublayer]
            if len(rows) < self._short.get((key, sublayer), 0):
                continue
            plain, weighted, chance = (list(column) for column in zip(*rows, strict=True))
            overlaps.append(
                Overlap(
                    key, sublayer, Spread.of(plain), Spread.of(weighted), Spread.of(chance).mean
                )
            )
        return tuple(overlaps)

    def _add(
        self, key: BlockKey, sublayer: Sublayer, activations: Tensor, importance: Tensor
    ) -> None:
        if key not in self._magnitudes:
            self._magnitudes[key] = self.magnitude(key)
        magnitude = self._magnitudes[key][0 if sublayer == "heads" else 1]
        has_cls = self.has_cls(key)
        contributions = [
            token_contributions(
                activations, norm_weights(importance, token_weighted, has_cls), magnitude
            )
            for token_weighted in (False, True)
        ]
        for row, received in enumerate(importance):
            tokens = ranked_tokens(received, has_cls)
            if len(tokens) < FEWEST:
                self._short[key, sublayer] = self._short.get((key, sublayer), 0) + 1
                continue
            count = ceil(TOP * len(tokens))
            important = top_tokens(received, tokens, count)
            plain, weighted = (
                overlap_of(top_tokens(values[row], tokens, count), important)
                for values in contributions
            )
            rows = self._rows.setdefault((key, sublayer), [])
            rows.append((plain, weighted, count / len(tokens)))


@torch.no_grad()
def measure_overlaps(
    adapter: FamilyAdapter, batches: Iterable[Any], passed: Callable[[], None]
) -> tuple[Overlap, ...]:
    """Measure overlaps of a dense model; ``passed`` is called after each batch."""
    observer = OverlapObserver(adapter.output_magnitude, adapter.has_cls)
    for batch in batches:
        adapter.score(batch, Forwarding(), observer)
        passed()
    return observer.overlaps()
