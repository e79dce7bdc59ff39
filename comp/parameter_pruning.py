"""What methods that prune parameters alone have in common: where they start, and how they end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.families.base import Forwarding, Mode
from comp.finalise import Final, final_plan
from comp.importance import Scores
from comp.masks import BlockShape, Masks, StructureCounts
from comp.methods.base import Job, Outcome, agreed_workload, check_reachable, modes_of
from comp.plan import Part
from comp.search import Search, SearchState
from comp.search_state import stage_line, write_stages
from comp.training_loop import accuracy


@dataclass(frozen=True)
class Ground:
    """The whole model, and how much of which blocks has to go.

    Attributes:
        search: counts MACs and measures Eq. 3, token weights (CIP) left out.
        modes: of parameters.
        blocks: those that the modes prune.
        target: MACs to be left of ``dense_macs``.
    """

    search: Search
    modes: tuple[Mode, ...]
    blocks: tuple[BlockShape, ...]
    dense_macs: int
    target: int

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

    def macs(self, counts: StructureCounts) -> int:
        """Left with so many heads and channels; blocks without an entry are whole."""
        return self.search.adapter.macs(counts, {}, self.search.workload)


def ground_of(job: Job) -> Ground:
    """Where a method starts.

    Raises:
        CompExportError: the rate is beyond the modes (names the largest reachable).
    """
    adapter, options = job.adapter, job.options
    modes = modes_of(adapter, options.modes)
    importance = replace(options.importance, cip=False)
    workload = agreed_workload(job)
    search = Search(adapter, job.compute, job.data.calibration, importance, workload)
    state = SearchState(Masks.ones(adapter.blocks))
    usable = [mode for mode in adapter.modes if mode.part is not None]
    check_reachable(search, state, modes, options.rate, usable)
    parts = {mode.part for mode in modes}
    dense = search.macs(state)
    return Ground(
        search,
        tuple(modes),
        tuple(block for block in adapter.blocks if block.part in parts),
        dense,
        round((1 - options.rate) * dense),
    )


def measured(job: Job, masks: Masks | None) -> tuple[float, float]:
    """Validation metric and loss of the model under masks; none: as it is."""
    return accuracy(job.adapter, job.data.validation, Forwarding(masks), job.compute)


@dataclass(frozen=True)
class Chosen:
    """What a method chose to keep, and the scores by which widths are rounded."""

    masks: Masks
    scores: Scores


def concluded(
    job: Job,
    ground: Ground,
    chosen: Chosen,
    method: str,
    dense_metric: float,
    lines: Sequence[dict[str, Any]] = (),
    steps: int = 0,
) -> Outcome:
    """The plan at exactly the asked rate, measured; its line of ``stages.jsonl`` follows ``lines``."""
    final = Final(chosen.masks, chosen.scores, {}, job.options.align)
    workload, options = ground.search.workload, job.options
    plan = final_plan(job.adapter, final, workload, options.rate, job.model_name, method)
    metric, loss = measured(job, Masks.from_plan(plan.blocks))
    before, left = (
        (lines[-1]["metric"], lines[-1]["macs"]) if lines else (dense_metric, plan.macs_dense)
    )
    macs = ground.dense_macs, left, plan.macs
    line = stage_line(len(lines) + 1, ground.name, macs, (before, metric, loss))
    if job.compute.is_main:
        write_stages(job.folder, [*lines, line])
    job.compute.accelerator.wait_for_everyone()
    return Outcome(plan, dense_metric, metric, steps)
