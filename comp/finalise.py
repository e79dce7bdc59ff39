"""From thresholds to a plan: keep ratios, widths that kernels like, and exactly the asked rate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from comp.costs import Costs
from comp.families.base import FamilyAdapter
from comp.importance import Scores
from comp.masks import BlockKey, BlockShape, Masks, StructureCounts
from comp.plan import KEEP_UNIT, BlockPlan, DropPlan, PruningPlan, RateOf, Workload
from comp.search import Shares


@dataclass(frozen=True)
class Final:
    """What a search ended with: ranked structures and the shares of tokens kept."""

    masks: Masks
    scores: Scores
    shares: Shares
    align: int


def final_plan(
    adapter: FamilyAdapter,
    final: Final,
    workload: Workload,
    rate: float,
    model: str,
    method: str,
    costs: Costs | None = None,
) -> PruningPlan:
    """Fix head sets, channel sets (a multiple of ``align`` in pruned layers) and keep ratios.

    Rounding moves the costs (``costs``: by default FLOPs) a little; keep ratios, or, where no tokens are
    dropped, widths, are then moved until the rate is the asked one.
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
    shares = _thousandths(final.shares, 1.0)
    if any(share < 1 for pair in shares.values() for share in pair):
        shares = _fit_shares(final.shares, target, lambda s: costs.of(widths, s, workload))
    widths = _fit_widths(costs, final, widths, shares, workload, target)
    blocks = tuple(_block_plan(adapter, final, widths, key) for key in dense)
    drops = tuple(
        DropPlan(part=part, after_layer=after, vision_keep_ratio=vision, text_keep_ratio=text)
        for (part, after), (vision, text) in sorted(shares.items())
    )
    macs = costs.macs(whole, {}, workload), costs.macs(widths, shares, workload)
    plan = plan_of(adapter, workload, macs, model, method, blocks, drops)
    before, after = (
        costs.milliseconds(*each, workload) for each in ((whole, {}), (widths, shares))
    )
    if before is None or after is None:
        return plan
    return _timed(plan, before, after, costs.rate_of)


def _timed(plan: PruningPlan, before: float, after: float, rate_of: RateOf) -> PruningPlan:
    """The plan with predicted milliseconds, and with the rate of what it is to be of."""
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
    """The plan of a method for a model; ``macs`` are those before and after."""
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


def block_plan(block: BlockShape, groups: Iterable[int], channels: Iterable[int]) -> BlockPlan:
    """What stays of a block: these KV heads and these channels."""
    return BlockPlan(
        part=block.part,
        index=block.index,
        num_attention_heads=block.num_attention_heads,
        num_key_value_heads=block.num_key_value_heads,
        intermediate_size=block.intermediate_size,
        kept_key_value_heads=tuple(groups),
        kept_channels=tuple(channels),
    )


def whole_blocks(blocks: Iterable[BlockShape]) -> tuple[BlockPlan, ...]:
    """Plans that leave every block as it is."""
    return tuple(
        block_plan(block, range(block.num_key_value_heads), range(block.intermediate_size))
        for block in blocks
    )


def _aligned(count: int, full: int, align: int) -> int:
    """The nearest multiple of ``align``, at least one and no more than the layer has."""
    if count == full:
        return full
    return min(full, max(align, round(count / align) * align))


def _thousandths(shares: Shares, strength: float) -> Shares:
    """Keep ratios in whole thousandths; ``strength`` scales how much each place drops."""

    def ratio(share: float) -> float:
        return min(KEEP_UNIT, max(1, round(KEEP_UNIT * (1 - strength * (1 - share))))) / KEEP_UNIT

    return {place: (ratio(vision), ratio(text)) for place, (vision, text) in shares.items()}


def _fit_shares(shares: Shares, target: int, cost: Callable[[Shares], int]) -> Shares:
    """Scale the dropping of all places alike until ``target`` costs are left."""
    low, high = 0.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        if cost(_thousandths(shares, middle)) > target:
            low = middle
        else:
            high = middle
    return min(
        (_thousandths(shares, strength) for strength in (low, high, 1.0)),
        key=lambda tried: abs(cost(tried) - target),
    )


def _fit_widths(
    costs: Costs,
    final: Final,
    widths: StructureCounts,
    shares: Shares,
    workload: Workload,
    target: int,
) -> StructureCounts:
    """Move widths by ``align`` in the layers that were pruned while that brings the costs nearer."""
    channels = dict(widths.channels)
    full = {block.key: block.intermediate_size for block in costs.adapter.blocks}
    movable = [key for key, count in channels.items() if count < full[key]]

    def distance(tried: dict[BlockKey, int]) -> int:
        return abs(costs.of(StructureCounts(widths.heads, tried), shares, workload) - target)

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
    adapter: FamilyAdapter, final: Final, widths: StructureCounts, key: BlockKey
) -> BlockPlan:
    block = next(block for block in adapter.blocks if block.key == key)
    heads, channels = final.masks.heads[key] > 0.5, final.masks.channels[key] > 0.5
    width = widths.channels[key]
    if key in final.scores.channels:
        # What the search kept comes first; rounding up takes back the best of what it cut, rounding down
        # gives up the least of what it kept.
        ranked = final.scores.channels[key].argsort(descending=True, stable=True)
        first = channels[ranked].to(torch.int8).argsort(descending=True, stable=True)
        kept = ranked[first][:width].sort().values
    else:
        kept = channels.nonzero()[:, 0]
    return block_plan(block, heads.nonzero()[:, 0].tolist(), kept.tolist())
