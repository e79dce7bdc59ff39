"""Measure a plan that needs no training, and record the stages of a method."""

from collections.abc import Sequence
from typing import Any

from comp.adapter import FamilyAdapter, Forwarding
from comp.masks import whole_blocks
from comp.plan import Drops, PruningPlan, Workload
from comp.search.final_plan import plan_of
from comp.search.job import Outcome, PruningJob
from comp.search.saved_state import stage_line, write_stages
from comp.search.stage import Shares
from comp.tokens.drop_rules import rules_from_plan
from comp.training.trainer import accuracy


def record_stages(job: PruningJob, lines: Sequence[dict[str, Any]]) -> None:
    """Write ``stages.jsonl`` and report its last line in the main process; the others wait."""
    if job.compute.is_main:
        write_stages(job.folder, list(lines))
        job.progress.stage(lines[-1])
    job.compute.accelerator.wait_for_everyone()


def plan_of_drops(job: PruningJob, workload: Workload, drops: Drops, method: str) -> PruningPlan:
    """Plan with these drops that leaves every block whole."""
    adapter = job.adapter
    macs = adapter.macs_of_drops((), workload), adapter.macs_of_drops(drops, workload)
    blocks = whole_blocks(adapter.blocks)
    return plan_of(adapter, workload, macs, job.model_name, method, blocks, drops)


def measured_at_once(
    job: PruningJob,
    plan: PruningPlan,
    mode: str,
    shares: Shares,
    pruned: FamilyAdapter | None = None,
) -> Outcome:
    """Measure a plan of drops without training, and write its line of ``stages.jsonl``.

    Args:
        job: with the dense adapter.
        plan: the plan of the outcome.
        mode: names of the modes that it prunes.
        shares: shares of vision and text tokens kept, by place.
        pruned: the adapter that runs the plan, given the plan's drops; by default the dense one.
    """
    with job.progress.task("pruning", 2) as task:
        dense_metric, _ = job.measured()
        task.at(1)
        forwarding = Forwarding(rules=rules_from_plan(plan.drops))
        validation = job.data.validation
        metric, loss = accuracy(pruned or job.adapter, validation, forwarding, job.compute)
    macs = plan.macs_dense, plan.macs_dense, plan.macs
    record_stages(job, [stage_line(1, mode, macs, (dense_metric, metric, loss), shares)])
    return Outcome(plan, dense_metric, metric, steps=0)
