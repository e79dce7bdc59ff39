"""State of a pruning search, and one stage of it: the inner loop of CoMP.

Independent of family and method. Parameters are cut by one threshold over standardised scores, tokens by
one threshold over their relative importance. Both stop when the stage's costs (``comp.search.costs``: FLOPs
or predicted time) are removed. A token threshold only decides how many tokens stay at each place. These
shares are then fixed: training makes attention more peaked, so that a fixed threshold would drop more and
more tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from comp.adapter import FamilyAdapter, Forwarding, KeptShare, Mode, TokenKind
from comp.importance.parameters import ParameterImportance, Scales, Unit, cheapest_units
from comp.masks import BlockKey, Masks, StructureCounts
from comp.plan import KEEP_UNIT, Part, Place, Workload
from comp.registry.importances import IMPORTANCES
from comp.search.bisection import find_threshold
from comp.search.costs import Costs
from comp.tokens.drop_rules import DropRules, RaisedRule, RatioRule
from comp.tokens.state import TEXT, VISION
from comp.utils.compute import Compute

TOKEN_TOLERANCE = 0.05  # largest overshoot, as a share of the costs that a stage is to remove
# Bounds of one stage. A larger cut damages the model more than the stage's training can repair.
LEAST_LEFT = 0.5  # share of the present tokens of a kind that stays
# Multiples of an even share over all stages that a part may lose: otherwise a small part could be removed
# before its cost is known.
EVEN_SHARES = 2
# Share of the removable rest that a part may lose: its last heads and channels matter most.
REST_CUT = 1 / 3
Shares = dict[Place, tuple[float, float]]
WHOLE = (1.0, 1.0)


@dataclass(frozen=True)
class Thresholds:
    """theta^t of each kind of token, as last raised; 0 keeps all."""

    vision: float = 0.0
    text: float = 0.0

    def with_kind(self, kind: TokenKind, value: float) -> "Thresholds":
        return replace(self, **{kind: value})


@dataclass(frozen=True)
class SearchState:
    """State of a search.

    Attributes:
        masks: binary masks.
        thresholds: token thresholds as last raised.
        shares: shares of image and text tokens kept, by place.
        scales: scales of the scores of pruned layers, from before they were pruned.
    """

    masks: Masks
    thresholds: Thresholds = field(default_factory=Thresholds)
    shares: Shares = field(default_factory=dict)
    scales: Scales = field(default_factory=Scales)


@dataclass(frozen=True)
class ImportanceOptions:
    """Switches of CIP and CIT, the fewest channels that a layer keeps, and the formula of importance.

    Attributes:
        formula: name of the formula (``comp.registry.importances``).
    """

    cip: bool = True
    cit: bool = True
    min_channels: int = 16
    formula: str = "cim"


class Search:
    """Advances a state by one mode at a time, with a model, calibration batches and costs."""

    def __init__(
        self,
        adapter: FamilyAdapter,
        compute: Compute,
        calibration: Sequence[Any],
        options: ImportanceOptions,
        workload: Workload,
        stages: int = 1,
        costs: Costs | None = None,
    ) -> None:
        """Keep the model and its batches; ``costs`` are FLOPs by default."""
        self.adapter, self.compute, self.stages = adapter, compute, stages
        self.costs = costs or Costs(adapter)
        self.calibration, self.options, self.workload = calibration, options, workload

    def cost(self, state: SearchState) -> int:
        """Cost of a state, in the unit of ``Costs.of``."""
        return self.costs.of(state.masks.counts(), state.shares, self.workload)

    def macs(self, state: SearchState) -> int:
        return self.costs.macs(state.masks.counts(), state.shares, self.workload)

    def milliseconds(self, state: SearchState) -> float | None:
        """Predicted time to the first token, if there is a table."""
        return self.costs.milliseconds(state.masks.counts(), state.shares, self.workload)

    def rules(
        self, state: SearchState, before: SearchState | None = None, softness: float = 0.0
    ) -> DropRules:
        """Drop rules of a state; newly dropped tokens since ``before`` keep the presence ``softness``."""
        then = state.shares if before is None else before.shares
        return {
            place: RatioRule(*share, then.get(place, WHOLE), softness)
            for place, share in state.shares.items()
        }

    def forwarding(self, state: SearchState) -> Forwarding:
        return Forwarding(state.masks, self.rules(state), self.options.cit)

    def softly(self, before: SearchState, after: SearchState, progress: float) -> Forwarding:
        """Forward pass within a stage: masks of what it cuts decay from 1 to 0 as ``progress`` goes to 1."""
        masks = before.masks.towards(after.masks, progress)
        return Forwarding(masks, self.rules(after, before, 1.0 - progress), self.options.cit)

    def advance(
        self, state: SearchState, mode: Mode, target: int, to_the_end: bool = False
    ) -> SearchState:
        """Raise the mode's threshold until ``target`` costs are left, or up to the bounds of a stage.

        ``to_the_end`` lifts the bound on the removable rest of a part (``REST_CUT``).
        """
        with self.compute.timed("importance"):
            if mode.tokens is not None:
                return self._drop_tokens(state, mode.tokens, target)
            before, whole = self.cost(state), replace(state, masks=Masks.ones(self.adapter.blocks))
            most = min(1.0, EVEN_SHARES / self.stages) * (
                self.cost(whole) - self.floor(whole, [mode])
            )
            if not to_the_end:
                rest = before - self.floor(state, [mode])
                most = min(most, max(REST_CUT, 1 / self.stages) * rest)
            return self._cut_parameters(state, mode, max(target, round(before - most)))

    def floor(self, state: SearchState, modes: Sequence[Mode]) -> int:
        """Least cost that these modes can leave: ``least_counts`` of a layer, one token of a kind."""
        shares = dict(state.shares)
        for mode in modes:
            if mode.tokens is not None:
                for number, place in enumerate(self._places(mode.tokens)):
                    least = 1 / KEEP_UNIT if number == 0 else 1.0
                    vision, text = shares.get(place, WHOLE)
                    shares[place] = (least, text) if mode.tokens == "vision" else (vision, least)
        return self.costs.of(self.least_counts(state, modes), shares, self.workload)

    def least_counts(self, state: SearchState, modes: Sequence[Mode]) -> StructureCounts:
        """Fewest heads and channels that these modes can leave: one head and ``min_channels`` a layer."""
        counts = state.masks.counts()
        heads, channels = dict(counts.heads), dict(counts.channels)
        parts = {mode.part for mode in modes}
        for block in self.adapter.blocks:
            if block.part in parts:
                heads[block.key] = 1
                channels[block.key] = min(self.options.min_channels, channels[block.key])
        return StructureCounts(heads, channels)

    def _places(self, kind: TokenKind) -> list[Place]:
        """Places where tokens of a kind may be dropped."""
        return [place for place, kinds in self.adapter.drop_places.items() if kind in kinds]

    def importance(self, state: SearchState, parts: set[Part]) -> ParameterImportance:
        """Run the calibration batches and collect importances of heads and channels."""
        formula = IMPORTANCES[self.options.formula]
        observer = ParameterImportance(parts, self.options.cip, self.adapter.has_cls, formula)
        forwarding = self.forwarding(state)
        timed = self.compute.timed("importance")
        with timed, torch.no_grad(), self.compute.autocast():
            for batch in self.calibration:
                self.adapter.score(batch, forwarding, observer)
        for kind, means in zip(("heads", "channels"), observer.norms(), strict=True):
            for key, value in means.items():
                means[key] = self.compute.mean(value, observer.rows(kind, key))
        return observer

    def _cut_parameters(self, state: SearchState, mode: Mode, target: int) -> SearchState:
        assert mode.part is not None
        scores = self.importance(state, {mode.part}).scores(self.adapter)
        masks = Masks(
            {key: mask.clone() for key, mask in state.masks.heads.items()},
            {key: mask.clone() for key, mask in state.masks.channels.items()},
        )
        scales = state.scales.and_new(scores.scales())
        units = cheapest_units(
            scores, scales, masks, self.adapter.blocks, self.options.min_channels
        )

        def cost(counts: StructureCounts) -> int:
            return self.costs.of(counts, state.shares, self.workload)

        for _, kind, key, index in first_reaching(cost, masks, units, target):
            mask_of(masks, kind, key)[index] = 0
        return replace(state, masks=masks, scales=scales)

    def _drop_tokens(self, state: SearchState, kind: TokenKind, target: int) -> SearchState:
        least = LEAST_LEFT * _reaching_the_end(state.shares, kind)
        almost = target - TOKEN_TOLERANCE * (self.cost(state) - target)
        with torch.no_grad(), self.compute.autocast():
            seen = [self.adapter.with_features(batch, state.masks) for batch in self.calibration]

        def attempt(value: float) -> SearchState:
            return self._with_threshold(seen, state, kind, value)

        def is_enough(tried: SearchState) -> bool:
            return self.cost(tried) <= target or _reaching_the_end(tried.shares, kind) <= least

        def is_close(tried: SearchState) -> bool:
            left = _reaching_the_end(tried.shares, kind)
            return self.cost(tried) >= almost and left >= (1 - TOKEN_TOLERANCE) * least

        return find_threshold(attempt, is_enough, is_close, getattr(state.thresholds, kind))

    def _with_threshold(
        self, batches: Sequence[Any], state: SearchState, kind: TokenKind, value: float
    ) -> SearchState:
        code = VISION if kind == "vision" else TEXT
        shares_before = {
            place: state.shares.get(place, WHOLE) for place in self.adapter.drop_places
        }
        places_of_kind = self._places(kind)
        rules: DropRules = {
            place: RaisedRule(code, value, rule) if place in places_of_kind else rule
            for place, rule in (
                (place, RatioRule(*share)) for place, share in shares_before.items()
            )
        }
        measured = self._measured_shares(batches, state.masks, rules)
        shares = dict(shares_before)
        for place in places_of_kind:
            vision, text = shares_before[place]
            if kind == "vision":
                shares[place] = (measured[place][0], text)
            else:
                shares[place] = (vision, measured[place][1])
        return replace(state, thresholds=state.thresholds.with_kind(kind, value), shares=shares)

    def _measured_shares(self, batches: Sequence[Any], masks: Masks, rules: DropRules) -> Shares:
        """Measured keep ratios over these batches, by drop place and kind."""
        forwarding = Forwarding(masks, rules, self.options.cit)
        totals: dict[Place, Tensor] = {}
        with torch.no_grad(), self.compute.autocast():
            for batch in batches:
                for place, share in self.adapter.shares(batch, forwarding).items():
                    totals[place] = totals.get(
                        place, torch.zeros(4, dtype=torch.float64)
                    ) + _as_tensor(share)
        shares = {}
        for place, total in sorted(totals.items()):
            vision, vision_kept, text, text_kept = self.compute.sum(total).tolist()
            shares[place] = (_share(vision_kept, vision), _share(text_kept, text))
        return shares


def first_reaching(
    cost: Callable[[StructureCounts], int], masks: Masks, units: Sequence[Unit], target: int
) -> Sequence[Unit]:
    """Return the fewest first units whose removal leaves at most ``target`` costs (by bisection)."""

    def left(count: int) -> int:
        counts = masks.counts()
        for _, kind, key, _ in units[:count]:
            (counts.heads if kind == "heads" else counts.channels)[key] -= 1
        return cost(counts)

    low, high = 0, len(units)
    while low < high:
        middle = (low + high) // 2
        if left(middle) > target:
            low = middle + 1
        else:
            high = middle
    return units[:low]


def mask_of(masks: Masks, kind: str, key: BlockKey) -> Tensor:
    """Return the mask that holds a unit."""
    return (masks.heads if kind == "heads" else masks.channels)[key]


def _reaching_the_end(shares: Shares, kind: TokenKind) -> float:
    """Share of a kind's tokens that reach the end."""
    return prod(share[0 if kind == "vision" else 1] for share in shares.values())


def _share(kept: float, of: float) -> float:
    """Keep ratio, at least the smallest one: one token of a kind always stays."""
    return max(kept / max(of, 1), 1 / KEEP_UNIT)


def _as_tensor(share: KeptShare) -> Tensor:
    return torch.tensor(
        [share.vision, share.vision_kept, share.text, share.text_kept], dtype=torch.float64
    )
