"""Turn the result of a search into a plan: aligned widths, keep ratios, exactly the requested rate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from comp.adapter import FamilyAdapter
from comp.importance.parameters import Scores
from comp.masks import BlockKey, Masks, StructureCounts, block_plan
from comp.plan import (
    KEEP_UNIT,
    BlockPlan,
    DropPlan,
    Drops,
    PruningPlan,
    RateOf,
    Workload,
    shares_of,
)
from comp.search.costs import Costs
from comp.search.stage import Shares


@dataclass(frozen=True)
class SearchResult:
    """Result of a search: masks, scores of parameters, and token drops.

    Attributes:
        align: pruned widths become multiples of this.
    """

    masks: Masks
    scores: Scores
    align: int
    drops: Drops = ()


def final_plan(
    adapter: FamilyAdapter,
    final: SearchResult,
    workload: Workload,
    rate: float,
    model: str,
    method: str,
    costs: Costs | None = None,
) -> PruningPlan:
    """Fix head sets, channel sets (multiples of ``align`` in pruned layers) and keep ratios.

    Rounding changes the costs (``costs``: by default FLOPs) a little. Keep ratios, or widths if no tokens
    are dropped, are then adjusted until the requested rate is met.
    """
    costs = costs or Costs(adapter)
    counts = final.masks.counts()
    dense = {block.key: block for block in adapter.blocks}
    whole = StructureCounts(
        {key: block.num_key_value_heads for key, block in dense.items()},
        {key: block.intermediate_size for key, block in dense.items()},
    )
    target = round((1 - rate) * costs.of(whole, {}, workload))
    channels = {
        key: _aligned(count, dense[key].intermediate_size, final.align)
        for key, count in counts.channels.items()
    }
    widths = StructureCounts(counts.heads, channels)
    drops = _thousandths(final.drops, 1.0)
    if any(share < 1 for drop in drops for share in drop.shares):
        drops = _fit_drops(
            final.drops, target, lambda tried: costs.of_drops(tried, workload, widths)
        )
    widths = _fit_widths(
        adapter, final, widths, target, lambda tried: costs.of_drops(drops, workload, tried)
    )
    blocks = tuple(_block_plan(adapter, final, widths, key) for key in dense)
    macs = adapter.macs_of_drops((), workload), adapter.macs_of_drops(drops, workload, widths)
    plan = plan_of(adapter, workload, macs, model, method, blocks, drops)
    before, after = (
        costs.milliseconds(*each, workload) for each in ((whole, {}), (widths, shares_of(drops)))
    )
    if before is None or after is None:
        return plan
    return _timed(plan, before, after, costs.rate_of)


def _timed(plan: PruningPlan, before: float, after: float, rate_of: RateOf) -> PruningPlan:
    """Return the plan with predicted milliseconds, and with its rate by ``rate_of``."""
    times = {"milliseconds_dense": before, "milliseconds": after, "rate_of": rate_of}
    rate = 1 - after / before if rate_of == "latency" else plan.rate
    return PruningPlan.model_validate(plan.model_dump() | times | {"rate": rate})


def plan_of(
    adapter: FamilyAdapter,
    workload: Workload,
    macs: tuple[int, int],
    model: str,
    method: str,
    blocks: tuple[BlockPlan, ...],
    drops: tuple[DropPlan, ...],
) -> PruningPlan:
    """Return the plan of a method for a model; ``macs`` are those before and after."""
    before, after = macs
    return PruningPlan(
        family=adapter.name,
        task=adapter.task,
        model=model,
        method=method,
        rate=1 - after / before,
        workload=workload,
        macs_dense=before,
        macs=after,
        blocks=blocks,
        drops=drops,
    )


def _aligned(count: int, full: int, align: int) -> int:
    """Nearest multiple of ``align``, at least one multiple and at most the layer's width."""
    if count == full:
        return full
    return min(full, max(align, round(count / align) * align))


def drops_of(shares: Shares) -> Drops:
    """Drops that keep these shares of tokens, ranked by the attention that they receive."""
    return tuple(
        DropPlan(part=part, after_layer=after, vision_keep_ratio=vision, text_keep_ratio=text)
        for (part, after), (vision, text) in sorted(shares.items())
    )


def _thousandths(drops: Drops, strength: float) -> Drops:
    """Round keep ratios to thousandths; ``strength`` scales the share that each place drops."""

    def ratio(share: float) -> float:
        return min(KEEP_UNIT, max(1, round(KEEP_UNIT * (1 - strength * (1 - share))))) / KEEP_UNIT

    names = ("vision_keep_ratio", "text_keep_ratio")
    return tuple(
        drop.model_copy(
            update={name: ratio(share) for name, share in zip(names, drop.shares, strict=True)}
        )
        for drop in drops
    )


def _fit_drops(drops: Drops, target: int, cost: Callable[[Drops], int]) -> Drops:
    """Scale the dropped shares of all places by one factor until ``target`` costs are left."""
    low, high = 0.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        if cost(_thousandths(drops, middle)) > target:
            low = middle
        else:
            high = middle
    return min(
        (_thousandths(drops, strength) for strength in (low, high, 1.0)),
        key=lambda tried: abs(cost(tried) - target),
    )


def _fit_widths(
    adapter: FamilyAdapter,
    final: SearchResult,
    widths: StructureCounts,
    target: int,
    cost: Callable[[StructureCounts], int],
) -> StructureCounts:
    """Change the widths of pruned layers by ``align`` while that brings the costs nearer to ``target``."""
    channels = dict(widths.channels)
    full = {block.key: block.intermediate_size for block in adapter.blocks}
    movable = [key for key, count in channels.items() if count < full[key]]

    def distance(tried: dict[BlockKey, int]) -> int:
        return abs(cost(StructureCounts(widths.heads, tried)) - target)

    while movable:
        now = distance(channels)
        moves = [
            channels | {key: channels[key] + step}
            for key in movable
            for step in (-final.align, final.align)
            if final.align <= channels[key] + step <= full[key]
        ]
        best = min(moves, key=distance, default=channels)
        if distance(best) >= now:
            break
        channels = best
    return StructureCounts(widths.heads, channels)


def _block_plan(
    adapter: FamilyAdapter, final: SearchResult, widths: StructureCounts, key: BlockKey
) -> BlockPlan:
    block = next(block for block in adapter.blocks if block.key == key)
    heads, channels = final.masks.heads[key] > 0.5, final.masks.channels[key] > 0.5
    width = widths.channels[key]
    if key in final.scores.channels:
        # Channels that the search kept come first: rounding up adds the best that it cut, rounding down
        # removes the worst that it kept.
        ranked = final.scores.channels[key].argsort(descending=True, stable=True)
        first = channels[ranked].to(torch.int8).argsort(descending=True, stable=True)
        kept = ranked[first][:width].sort().values
    else:
        kept = channels.nonzero()[:, 0]
    return block_plan(block, heads.nonzero()[:, 0].tolist(), kept.tolist())
