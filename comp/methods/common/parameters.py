"""What methods that prune parameters, alone or beside tokens, have in common: where they start and end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.adapter import Forwarding, Mode
from comp.importance.parameters import Scores
from comp.masks import UNCUT, BlockShape, Masks, StructureCounts
from comp.plan import Drops, Part, shares_of
from comp.search.final_plan import SearchResult, final_plan
from comp.search.job import Outcome, PruningJob, agreed_workload, check_reachable, modes_of
from comp.search.saved_state import stage_line, write_stages
from comp.search.stage import Search, SearchState
from comp.tokens.drop_rules import rules_from_plan
from comp.training.trainer import accuracy


@dataclass(frozen=True)
class ParameterProblem:
    """The whole model, and how much of which blocks has to go.

    Attributes:
        search: counts MACs and measures Eq. 3, token weights (CIP) left out.
        modes: of parameters.
        blocks: those that the modes prune.
        dense_macs: of the model with all parameters and tokens.
        target: MACs to be left of them.
        drops: that bring down the MACs beside the parameters, in methods that prune tokens too.
    """

    search: Search
    modes: tuple[Mode, ...]
    blocks: tuple[BlockShape, ...]
    dense_macs: int
    target: int
    drops: Drops = ()

    @property
    def parts(self) -> set[Part]:
        return {block.part for block in self.blocks}

    @property
    def name(self) -> str:
        """Its modes together, as ``stages.jsonl`` names them."""
        return "+".join(mode.name for mode in self.modes)

    @property
    def min_channels(self) -> int:
        """That a layer keeps."""
        return self.search.options.min_channels

    def whole(self) -> SearchState:
        """Nothing removed."""
        return SearchState(Masks.ones(self.search.adapter.blocks))

    def macs(self, counts: StructureCounts = UNCUT, drops: Drops | None = None) -> int:
        """Left with so many heads and channels and these drops, those of the ground where none are given.

        Blocks without an entry are whole.
        """
        drops = self.drops if drops is None else drops
        return self.search.adapter.macs_of_drops(drops, self.search.workload, counts)


def parameter_problem(job: PruningJob) -> ParameterProblem:
    """Where a method of parameters alone starts.

    Raises:
        CompExportError: the rate is beyond the modes (names the largest reachable).
    """
    problem = unchecked_problem(job)
    usable = [mode for mode in job.adapter.modes if mode.part is not None]
    check_reachable(problem.search, problem.whole(), problem.modes, job.options.rate, usable)
    return problem


def unchecked_problem(job: PruningJob) -> ParameterProblem:
    """The whole model, for the modes of parameters among the job's."""
    adapter, options = job.adapter, job.options
    modes = tuple(mode for mode in modes_of(adapter, options.modes) if mode.part is not None)
    importance = replace(options.importance, cip=False)
    workload = agreed_workload(job)
    search = Search(adapter, job.compute, job.data.calibration, importance, workload)
    parts = {mode.part for mode in modes}
    dense = adapter.macs_of_drops((), workload)
    return ParameterProblem(
        search,
        modes,
        tuple(block for block in adapter.blocks if block.part in parts),
        dense,
        round((1 - options.rate) * dense),
    )


def measured(job: PruningJob, masks: Masks | None, drops: Drops = ()) -> tuple[float, float]:
    """Validation metric and loss of the model under masks and with drops; none: as it is."""
    forwarding = Forwarding(masks, rules_from_plan(drops))
    return accuracy(job.adapter, job.data.validation, forwarding, job.compute)


def next_line(
    problem: ParameterProblem,
    lines: Sequence[dict[str, Any]],
    mode: str,
    dense_metric: float,
    after: tuple[int, float, float],
    drops: Drops = (),
) -> dict[str, Any]:
    """The line of ``stages.jsonl`` that follows ``lines``.

    Args:
        problem: the model.
        lines: of the stages before.
        mode: what the stage advanced.
        dense_metric: of the dense model.
        after: MACs that the stage leaves, the metric and the loss then.
        drops: those after it.
    """
    left, metric, loss = after
    had, before = (
        (lines[-1]["macs"], lines[-1]["metric"]) if lines else (problem.dense_macs, dense_metric)
    )
    macs = problem.dense_macs, had, left
    return stage_line(len(lines) + 1, mode, macs, (before, metric, loss), shares_of(drops))


@dataclass(frozen=True)
class Chosen:
    """What a method chose to keep, and the scores by which widths are rounded."""

    masks: Masks
    scores: Scores


def concluded(
    job: PruningJob,
    problem: ParameterProblem,
    chosen: Chosen,
    method: str,
    dense_metric: float,
    lines: Sequence[dict[str, Any]] = (),
    steps: int = 0,
    mode: str | None = None,
) -> Outcome:
    """The plan at exactly the asked rate, measured; its line of ``stages.jsonl`` follows ``lines``.

    Args:
        job, problem: the model and what goes.
        chosen: what stays of its parameters.
        method: its name.
        dense_metric: of the dense model.
        lines: of the stages before the last.
        steps: taken.
        mode: what the last stage advanced; by default the modes of parameters.
    """
    workload, options = problem.search.workload, job.options
    final = SearchResult(chosen.masks, chosen.scores, options.align, problem.drops)
    plan = final_plan(job.adapter, final, workload, options.rate, job.model_name, method)
    metric, loss = measured(job, Masks.from_plan(plan.blocks), plan.drops)
    after = plan.macs, metric, loss
    line = next_line(problem, lines, mode or problem.name, dense_metric, after, plan.drops)
    if job.compute.is_main:
        write_stages(job.folder, [*lines, line])
    job.compute.accelerator.wait_for_everyone()
    return Outcome(plan, dense_metric, metric, steps)
