"""Compute the importance of parameters (CIM, Eq. 3 and 4)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from comp.adapter import FamilyAdapter, Observer
from comp.errors import CompExportError
from comp.masks import BlockKey, BlockShape, Masks, name_of
from comp.plan import Part
from comp.registry.importances import IMPORTANCES, Formula, LayerStatistics

Unit = tuple[float, str, BlockKey, int]
"""A prunable unit: score, ``heads`` or ``channels``, block, index within the block."""


def token_weights(importance: Tensor, has_cls: bool) -> Tensor:
    """Token weights of CIP (Eq. 4), ``[B, N]``.

    ``omega_0 = 1`` for [CLS], if there is one (token 0). The weights of the others are proportional to
    importance and sum to 1.
    """
    if not has_cls:
        return importance / importance.sum(1, keepdim=True).clamp(min=1e-12)
    others = importance[:, 1:]
    shared = others / others.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.cat([torch.ones_like(importance[:, :1]), shared], dim=1)


def norm_weights(importance: Tensor, token_weighted: bool, has_cls: bool) -> Tensor:
    """Weights of tokens in an input norm, ``[B, N]``: Eq. 4, or 1 for all that take part (Eq. 3)."""
    if token_weighted:
        return token_weights(importance, has_cls)
    return (importance > 0).float()


def weighted_norm(activations: Tensor, weights: Tensor) -> Tensor:
    """Weighted norm ``(sum_n w_n X_ni^2)^(1/2)``: ``[B, N, D]`` and ``[B, N]`` to ``[B, D]``."""
    return torch.einsum("bn,bnd->bd", weights.float(), activations.float().square()).sqrt()


def token_contributions(activations: Tensor, weights: Tensor, magnitude: Tensor) -> Tensor:
    """Contribution of each token to a layer's scores of parameters (Eq. 3 or 4), ``[B, N]``.

    A channel's score ``m_i (sum_n w_n X_ni^2)^(1/2)`` is the sum over tokens of
    ``m_i w_n X_ni^2 / (sum_m w_m X_mi^2)^(1/2)``. These terms are summed over channels, so that the sum of a
    row is the sum of the layer's scores on it.

    Args:
        activations: X, ``[B, N, D]``.
        weights: weights of tokens, ``[B, N]`` (``norm_weights``).
        magnitude: ``m_i = (1/d) sum_j |W_ij|``, ``[D]``.
    """
    norms = weighted_norm(activations, weights)  # [B, D]
    slopes = magnitude.to(norms.device) / norms.clamp(min=1e-12)
    return weights.float() * torch.einsum("bnd,bd->bn", activations.float().square(), slopes)


@dataclass(frozen=True)
class PendingChannels:
    """An FFN's channels, which wait for the importance of tokens in the *next* block (CIP).

    Attributes:
        key: the FFN's block.
        hidden: the channels ``[B, N, I]``.
        own: importance in the block itself ``[B, N]``, for the last block.
        taken: indices of the tokens that reach the next block, if some are dropped after the FFN.
    """

    key: BlockKey
    hidden: Tensor
    own: Tensor
    taken: Tensor | None = None

    def tell(self, observer: Observer, following: Tensor | None) -> None:
        """Show the channels to an observer; ``following`` is the next block's importance, if there is one."""
        importance = self.own if following is None else following
        if following is not None and self.taken is not None:
            importance = torch.zeros_like(self.own).scatter(1, self.taken, following)
        observer.channels(self.key, self.hidden, importance)


def _wrong(scored: object, shape: torch.Size) -> str | None:
    """Return what is wrong with the result of a formula; ``None`` if nothing is."""
    if not isinstance(scored, Tensor):
        return f"is a {type(scored).__name__}"
    if scored.shape != shape:
        return f"has shape {tuple(scored.shape)}"
    return None if torch.isfinite(scored).all() else "is not finite"


@dataclass
class ParameterImportance:
    """Running means of weighted input norms, and the scores of heads and channels from them.

    An observer of forward passes (``comp.adapter.Observer``).

    Attributes:
        parts: parts whose blocks are observed.
        token_weighted: weigh tokens by Eq. 4 (CIP); otherwise all weigh 1 (Eq. 3).
        has_cls: whether token 0 of a block is [CLS].
        formula: of the scores.
    """

    parts: set[Part]
    token_weighted: bool = True
    has_cls: Callable[[BlockKey], bool] = lambda key: key[0] == "vision"
    formula: Formula = IMPORTANCES["cim"]
    _head_norms: dict[BlockKey, Tensor] = field(default_factory=dict)
    _channel_norms: dict[BlockKey, Tensor] = field(default_factory=dict)
    _rows: dict[tuple[str, BlockKey], int] = field(default_factory=dict)

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        self._add("heads", self._head_norms, key, mixed, importance)

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        self._add("channels", self._channel_norms, key, hidden, importance)

    def norms(self) -> tuple[dict[BlockKey, Tensor], dict[BlockKey, Tensor]]:
        """Mean norms of each block's head outputs ``[H * hd]`` and channels ``[I]``."""
        return self._head_norms, self._channel_norms

    def rows(self, kind: str, key: BlockKey) -> int:
        """Number of rows in the mean norms of a block's ``heads`` or ``channels``."""
        return self._rows[kind, key]

    def scores(self, adapter: FamilyAdapter) -> "Scores":
        """Score ``S'^p`` of every KV head (mean over its channels) and every FFN channel."""
        heads, channels = {}, {}
        for block in adapter.blocks:
            if block.part not in self.parts:
                continue
            attention, ffn = adapter.output_magnitude(block.key)
            by_channel = self._score("heads", block.key, attention, self._head_norms)
            heads[block.key] = by_channel.view(block.num_key_value_heads, -1).mean(1)
            if block.intermediate_size:
                channels[block.key] = self._score("channels", block.key, ffn, self._channel_norms)
        return Scores(heads, channels)

    def _score(
        self,
        kind: Literal["heads", "channels"],
        key: BlockKey,
        magnitude: Tensor,
        norms: dict[BlockKey, Tensor],
    ) -> Tensor:
        """Importance of each channel, ``[D]``.

        Raises:
            CompExportError: the formula returns another shape, or values that are not finite.
        """
        norm = norms[key].to(magnitude.device, copy=True)  # a formula may work in place
        scored = self.formula(LayerStatistics(*key, kind, magnitude.clone(), norm))
        wrong = _wrong(scored, magnitude.shape)
        if wrong is not None:
            raise CompExportError(
                f"the importance of {name_of(key)} {kind} {wrong}: "
                f"return {len(magnitude)} finite numbers, one a channel, as a tensor"
            )
        return scored.float().cpu()

    def _add(
        self,
        what: str,
        means: dict[BlockKey, Tensor],
        key: BlockKey,
        activations: Tensor,
        importance: Tensor,
    ) -> None:
        if key[0] not in self.parts:
            return
        weights = norm_weights(importance, self.token_weighted, self.has_cls(key))
        norms = weighted_norm(activations, weights)
        seen = self._rows.get((what, key), 0)
        total = seen + len(norms)
        mean = norms.mean(0)
        old = means.get(key, torch.zeros_like(mean))
        means[key] = old + (mean - old) * (len(norms) / total)
        self._rows[what, key] = total


@dataclass(frozen=True)
class Scores:
    """Importance of KV heads ``[num_key_value_heads]`` and channels ``[intermediate_size]``, by block."""

    heads: dict[BlockKey, Tensor]
    channels: dict[BlockKey, Tensor]

    def scales(self) -> "Scales":
        """Mean and standard deviation (at least 1e-12) of each layer's scores."""

        def scale(values: Tensor) -> tuple[float, float]:
            return float(values.mean()), max(float(values.std(correction=0)), 1e-12)

        return Scales(
            {key: scale(values) for key, values in self.heads.items()},
            {key: scale(values) for key, values in self.channels.items()},
        )

    def standardised(self, masks: Masks, scales: "Scales") -> "Scores":
        """Scores standardised by ``scales``, those of whole layers; ``inf`` for removed units."""

        def standard(values: Tensor, mask: Tensor, scale: tuple[float, float]) -> Tensor:
            mean, deviation = scale
            return torch.where(mask > 0.5, (values - mean) / deviation, torch.inf)

        return Scores(
            {k: standard(v, masks.heads[k], scales.heads[k]) for k, v in self.heads.items()},
            {
                k: standard(v, masks.channels[k], scales.channels[k])
                for k, v in self.channels.items()
            },
        )


@dataclass(frozen=True)
class Scales:
    """Mean and deviation of the scores of each layer's heads and channels, from before it was pruned.

    If the rest of a layer were standardised anew in every stage, its lowest scores would be far below the
    mean, even when few units are left. Heads, whose scores are less skewed than those of channels, would then
    be removed down to one or two.
    """

    heads: dict[BlockKey, tuple[float, float]] = field(default_factory=dict)
    channels: dict[BlockKey, tuple[float, float]] = field(default_factory=dict)

    def and_new(self, other: "Scales") -> "Scales":
        """Return these scales, with those of ``other`` for further layers."""
        return Scales(other.heads | self.heads, other.channels | self.channels)


def cheapest_units(
    scores: Scores,
    scales: Scales,
    masks: Masks,
    blocks: tuple[BlockShape, ...],
    min_channels: int,
) -> list[Unit]:
    """Units that may be cut, in ascending order of standardised score: one threshold for the mode."""
    return ordered_units(scores.standardised(masks, scales), blocks, min_channels)


def ordered_units(scores: Scores, blocks: tuple[BlockShape, ...], min_channels: int) -> list[Unit]:
    """Units that may be cut, lowest score first; units with a score of ``inf`` are removed already.

    Heads and channels of all layers are in one order. Each layer keeps its best KV head and its
    ``min_channels`` best channels.
    """
    units: list[Unit] = []
    for block in blocks:
        if block.key not in scores.heads:
            continue
        ranked = [("heads", scores.heads[block.key], 1)]
        if block.key in scores.channels:
            least = min(min_channels, block.intermediate_size)
            ranked.append(("channels", scores.channels[block.key], least))
        for kind, values, floor in ranked:
            finite = int(torch.isfinite(values).sum())
            order = values.argsort(stable=True)[: max(0, finite - floor)]
            units.extend((float(values[i]), kind, block.key, int(i)) for i in order)
    units.sort()
    return units
