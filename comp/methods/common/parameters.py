"""Prune parameters by scores, alone or together with tokens: the problem, measuring, the final plan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.adapter import Mode
from comp.importance.parameters import Scores
from comp.masks import UNCUT, BlockShape, Masks, StructureCounts
from comp.methods.common.stages import record_stages
from comp.plan import Drops, Part, shares_of
from comp.search.final_plan import SearchResult, final_plan
from comp.search.job import Outcome, PruningJob, agreed_workload, check_reachable, modes_of
from comp.search.saved_state import stage_line
from comp.search.stage import Search, SearchState


@dataclass(frozen=True)
class ParameterProblem:
    """A dense model whose heads and channels are to be removed until a target is met.

    Attributes:
        search: counts MACs and measures Eq. 3, without token weights (CIP).
        modes: the modes of parameters.
        blocks: the blocks that the modes prune.
        dense_macs: MACs of the dense model with all tokens.
        target: MACs to leave.
        drops: token drops that also reduce the MACs, in methods that prune tokens too.
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
        """Names of the modes, joined as in ``stages.jsonl``."""
        return "+".join(mode.name for mode in self.modes)

    @property
    def min_channels(self) -> int:
        """Fewest channels that a layer keeps."""
        return self.search.options.min_channels

    def whole(self) -> SearchState:
        """State of the dense model."""
        return SearchState(Masks.ones(self.search.adapter.blocks))

    def macs(self, counts: StructureCounts = UNCUT, drops: Drops | None = None) -> int:
        """MACs left with these counts and drops (by default the problem's own).

        Blocks without a count are whole.
        """
        drops = self.drops if drops is None else drops
        return self.search.adapter.macs_of_drops(drops, self.search.workload, counts)


def parameter_problem(job: PruningJob) -> ParameterProblem:
    """Return the problem of a method that prunes parameters alone.

    Raises:
        CompExportError: the rate is beyond the modes (names the largest reachable).
    """
    problem = unchecked_problem(job)
    usable = [mode for mode in job.adapter.modes if mode.part is not None]
    check_reachable(problem.search, problem.whole(), problem.modes, job.options.rate, usable)
    return problem


def unchecked_problem(job: PruningJob) -> ParameterProblem:
    """Return the problem of the job's modes of parameters, without checking that the rate is reachable."""
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


def next_line(
    problem: ParameterProblem,
    lines: Sequence[dict[str, Any]],
    mode: str,
    dense_metric: float,
    after: tuple[int, float, float],
    drops: Drops = (),
) -> dict[str, Any]:
    """Line of ``stages.jsonl`` that follows ``lines``.

    Args:
        problem: the parameter problem.
        lines: lines of the stages before.
        mode: names of the modes that the stage advanced.
        dense_metric: metric of the dense model.
        after: MACs, metric and loss after the stage.
        drops: drops after the stage.
    """
    left, metric, loss = after
    macs_before, before = (
        (lines[-1]["macs"], lines[-1]["metric"]) if lines else (problem.dense_macs, dense_metric)
    )
    macs = problem.dense_macs, macs_before, left
    return stage_line(len(lines) + 1, mode, macs, (before, metric, loss), shares_of(drops))


@dataclass(frozen=True)
class Chosen:
    """Masks of the units that a method keeps, and the scores by which widths are rounded."""

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
    """Fix the plan at exactly the requested rate, measure it, and write its line after ``lines``.

    Args:
        job, problem: the job and its parameter problem.
        chosen: the parameters to keep.
        method: name of the method.
        dense_metric: metric of the dense model.
        lines: lines of the stages before the last.
        steps: training steps taken.
        mode: names of the modes that the last stage advanced; by default the modes of parameters.
    """
    workload, options = problem.search.workload, job.options
    final = SearchResult(chosen.masks, chosen.scores, options.align, problem.drops)
    plan = final_plan(job.adapter, final, workload, options.rate, job.model_name, method)
    metric, loss = job.measured(Masks.from_plan(plan.blocks), plan.drops)
    after = plan.macs, metric, loss
    line = next_line(problem, lines, mode or problem.name, dense_metric, after, plan.drops)
    record_stages(job, [*lines, line])
    return Outcome(plan, dense_metric, metric, steps)
