"""Drop only image tokens of a LLaVA, by the one keep ratio that meets the rate."""

from collections.abc import Callable

from comp.adapter import FamilyAdapter
from comp.errors import CompExportError
from comp.methods.common.stages import measured_at_once, plan_of_drops
from comp.plan import KEEP_UNIT, DropPlan, Drops, Ranking, Workload, shares_of
from comp.search.bisection import nearest_strength
from comp.search.job import Outcome, PruningJob, agreed_workload

MODE = "vision_tokens"
TOLERANCE = 0.005  # of the rate, where single tokens are not coarser
LEAST = KEEP_UNIT - 1  # most thousandths that may be dropped at a place
FASTV_LAYERS = (2, 32)  # FastV and DART drop after 2 layers of 32


def early_place(adapter: FamilyAdapter) -> int:
    """FastV's drop place scaled to the model's depth: after ``max(1, floor(2 · layers / 32))`` blocks."""
    after, of = FASTV_LAYERS
    depth = sum(block.part == "language" for block in adapter.blocks)
    return max(1, after * depth // of)


def same_share(places: list[int], ranking: Ranking) -> Callable[[float], Drops]:
    """Return the drops as a function of the share of image tokens kept at each place; all text stays."""

    def drops(share: float) -> Drops:
        return tuple(
            DropPlan(
                after_layer=place, vision_keep_ratio=share, text_keep_ratio=1.0, ranking=ranking
            )
            for place in places
        )

    return drops


def prune_tokens(job: PruningJob, method: str, drops_at: Callable[[float], Drops]) -> Outcome:
    """Solve for the keep ratio that meets the rate, and measure; nothing is trained.

    Raises:
        CompExportError: the rate is beyond these places (names the largest reachable).
    """
    adapter, workload = job.adapter, agreed_workload(job)
    drops = solved(adapter, workload, job.options.rate, drops_at)
    plan = plan_of_drops(job, workload, drops, method)
    return measured_at_once(job, plan, MODE, shares_of(drops))


def solved(
    adapter: FamilyAdapter, workload: Workload, rate: float, drops_at: Callable[[float], Drops]
) -> Drops:
    """Drops whose rate is nearest to ``rate``, with keep ratios in thousandths.

    The rate is met within 0.5 % of the dense FLOPs, or half the cost of one token if that is more.

    Raises:
        CompExportError: dropping tokens at these places cannot reach the rate.
    """
    dense = adapter.macs_of_drops((), workload)

    def drops(gone: int) -> Drops:
        return drops_at((KEEP_UNIT - gone) / KEEP_UNIT)

    def macs(gone: int) -> int:
        return adapter.macs_of_drops(drops(gone), workload)

    largest = 1 - macs(LEAST) / dense
    if rate > largest + TOLERANCE:
        where = ", ".join(str(drop.after_layer) for drop in drops_at(1.0))
        raise CompExportError(
            f"rate {rate:g} is beyond what dropping image tokens after layer {where} can reach on this "
            f"model: at most {largest:.2f}; choose a smaller --rate, or a --method that also removes "
            "parameters"
        )
    return drops(nearest_strength(macs, 0, LEAST, (1 - rate) * dense))
