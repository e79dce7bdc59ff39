"""Plans that drop image tokens of a LLaVA and nothing else, by one share that meets the rate."""

from collections.abc import Callable

from comp.adapter import FamilyAdapter, Forwarding
from comp.errors import CompExportError
from comp.masks import whole_blocks
from comp.plan import KEEP_UNIT, DropPlan, Drops, PruningPlan, Ranking, Workload, shares_of
from comp.search.bisection import nearest_strength
from comp.search.final_plan import plan_of
from comp.search.job import Outcome, PruningJob, agreed_workload
from comp.search.saved_state import stage_line, write_stages
from comp.search.stage import Shares
from comp.tokens.drop_rules import rules_from_plan
from comp.training.trainer import accuracy

MODE = "vision_tokens"
TOLERANCE = 0.005  # of the rate, where single tokens are no coarser
LEAST = KEEP_UNIT - 1  # thousandths that may go at a place
FASTV_LAYERS = (2, 32)  # FastV and DART drop after 2 layers of 32


def early_place(adapter: FamilyAdapter) -> int:
    """FastV's place at the model's depth: ``max(1, floor(2 · layers / 32))`` blocks passed."""
    after, of = FASTV_LAYERS
    depth = sum(block.part == "language" for block in adapter.blocks)
    return max(1, after * depth // of)


def same_share(places: list[int], ranking: Ranking) -> Callable[[float], Drops]:
    """Drops that keep one share of the image tokens at every one of these places, and all text."""

    def drops(share: float) -> Drops:
        return tuple(
            DropPlan(
                after_layer=place, vision_keep_ratio=share, text_keep_ratio=1.0, ranking=ranking
            )
            for place in places
        )

    return drops


def prune_tokens(job: PruningJob, method: str, drops_at: Callable[[float], Drops]) -> Outcome:
    """Fix the share that meets the rate and measure; nothing is trained.

    Raises:
        CompExportError: the rate is beyond these places (names the largest reachable).
    """
    adapter, workload = job.adapter, agreed_workload(job)
    drops = solved(adapter, workload, job.options.rate, drops_at)
    plan = plan_of_drops(adapter, workload, drops, job.model_name, method)
    return measured(job, plan, adapter, shares_of(plan.drops))


def measured(job: PruningJob, plan: PruningPlan, pruned: FamilyAdapter, shares: Shares) -> Outcome:
    """What comes of a plan without any training, and its line among the stages.

    Args:
        job: with the dense adapter.
        plan: what it ends with.
        pruned: the adapter that runs as the plan says, given the plan's drops.
        shares: of vision and text tokens that stay, by place.
    """
    compute, validation = job.compute, job.data.validation
    with job.progress.task("pruning", 2) as task:
        dense_metric, _ = accuracy(job.adapter, validation, Forwarding(), compute)
        task.at(1)
        forwarding = Forwarding(rules=rules_from_plan(plan.drops))
        metric, loss = accuracy(pruned, validation, forwarding, compute)
    if compute.is_main:
        macs = plan.macs_dense, plan.macs_dense, plan.macs
        line = stage_line(1, MODE, macs, (dense_metric, metric, loss), shares)
        write_stages(job.folder, [line])
    compute.accelerator.wait_for_everyone()
    return Outcome(plan, dense_metric, metric, 0)


def solved(
    adapter: FamilyAdapter, workload: Workload, rate: float, drops_at: Callable[[float], Drops]
) -> Drops:
    """The drops whose rate is nearest to ``rate``, in thousandths of a share.

    That is within 0.5 % of the dense FLOPs, or within half of what one token costs where that is more.

    Raises:
        CompExportError: more has to go than these places can drop.
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


def plan_of_drops(
    adapter: FamilyAdapter, workload: Workload, drops: Drops, model: str, method: str
) -> PruningPlan:
    """A plan that leaves every block whole."""
    macs = adapter.macs_of_drops((), workload), adapter.macs_of_drops(drops, workload)
    blocks = whole_blocks(adapter.blocks)
    return plan_of(adapter, workload, macs, model, method, blocks, drops)
