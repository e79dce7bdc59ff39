"""CoMP: collaborative multi-mode pruning, the outer loop (MPS).

Paper: Wu, Wang, Wang, Chen, "Collaborative Multi-Mode Pruning for Vision-Language Models" (CVPR 2026).

Steps:

1. Measure the dense model, and refuse a rate that the modes cannot reach.
2. Until the rate is met, run a stage: choose a mode by cost or by exploration (Eq. 8 to 10), raise its
   threshold, train while its masks decay, measure, and update the mode's cost.
3. Fix the plan: align widths, and adjust keep ratios until the rate is met.

Prunes KV heads, FFN channels and tokens: every mode of the family.

Options: ``modes``, ``stages``, ``steps_per_stage``, ``align``, ``reconstruct``, ``train_stages``,
``importance`` (CIP, CIT) and ``strategy`` (CAS, exploration, history, undo).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from comp.adapter import Forwarding, Mode
from comp.errors import CompExportError
from comp.families.streamed import streamed_layers
from comp.masks import Masks, name_of
from comp.search.final_plan import SearchResult, drops_of, final_plan
from comp.search.job import Outcome, PruningJob, agreed_workload, check_reachable, modes_of
from comp.search.saved_state import SavedSearch, load_search, save_search
from comp.search.stage import Search, SearchState
from comp.search.strategy import ModeCost, better_mode, choose_mode, stage_cost, updated_cost
from comp.training.reconstruction import reconstruct
from comp.training.trainer import accuracy, mean_loss

METHOD = "comp"
MAX_STAGES_FACTOR = 4  # a search that has run this many times its stages makes no progress
WORTHWHILE = 0.25  # a mode that removes less than this share of its target is exhausted
LITTLE = 0.01  # the same bound for the only mode left, and for a mode that never ran


def prune(job: PruningJob) -> Outcome:
    """Search stage by stage until the rate is met; see ``comp.registry.methods.Method.load``.

    Raises:
        CompExportError: the rate is beyond the modes, or the search makes no progress.
    """
    adapter, compute, options = job.adapter, job.compute, job.options
    modes = modes_of(adapter, options.modes)
    workload = agreed_workload(job)
    calibration, importance = job.data.calibration, options.importance
    search = Search(adapter, compute, calibration, importance, workload, options.stages, job.costs)
    state = SearchState(Masks.ones(adapter.blocks))
    dense_cost = search.cost(state)
    target = round((1 - options.rate) * dense_cost)
    check_reachable(search, state, modes, options.rate, adapter.modes)

    saved = load_search(job.folder, adapter, options.modes)
    if saved is None:
        with job.progress.step("measuring the dense model"):
            dense = evaluate_stage(job, search.forwarding(state), at_an_end=True)
        assert dense.metric is not None
        untried = {mode.name: ModeCost() for mode in modes}
        saved = SavedSearch(state, 0, dense.metric, dense.metric, untried, (), dense.quality)
    runner = _Stages(job, search, dense_cost, target)
    begun = (dense_cost - search.cost(saved.state)) / max(1, dense_cost - target)
    with job.progress.task("pruning", 100, 100 * begun) as task:
        while (cost := search.cost(saved.state)) > target:
            task.at(100 * (dense_cost - cost) / (dense_cost - target))
            saved, line = runner.run(saved, modes, task.note)
            if compute.is_main:
                save_search(job.folder, adapter, saved, line)
                job.progress.stage(line)
            compute.accelerator.wait_for_everyone()
    parts = {block.part for block in adapter.blocks} & {m.part for m in modes if m.part is not None}
    scores = search.importance(saved.state, parts).scores(adapter)
    final = SearchResult(saved.state.masks, scores, options.align, drops_of(saved.state.shares))
    plan = final_plan(adapter, final, workload, options.rate, job.model_name, METHOD, job.costs)
    _refitted(job, search.forwarding(saved.state), Masks.from_plan(plan.blocks))
    return Outcome(plan, saved.dense_metric, saved.metric, options.comp_steps)


def _refitted(
    job: PruningJob, forwarding: Forwarding, after: Masks, undoable: bool = False
) -> Callable[[], None]:
    """Refit the layers to compensate for ``after``, if ``reconstruct`` is set.

    Returns:
        A function that restores the old weights (only if ``undoable``).
    """
    if not job.options.reconstruct:
        return lambda: None
    with job.compute.timed("reconstruction"):
        return reconstruct(
            job.adapter, job.compute, job.data.calibration, forwarding, after, undoable
        )


@dataclass(frozen=True)
class _Attempt:
    """A stage that was carried out.

    Attributes:
        mode: the mode that was pruned.
        cost: the mode's measured cost (Eq. 8).
        saved: the search after the stage.
        line: the stage's line of ``stages.jsonl``.
        undo: restores the weights that the stage changed.
    """

    mode: str
    cost: float
    saved: SavedSearch
    line: dict[str, Any]
    undo: Callable[[], None]


@dataclass(frozen=True)
class _Stages:
    """Runs the stages of one search.

    Attributes:
        dense_cost, target: costs of the dense model and of the pruned one (``Costs.of``).
    """

    job: PruningJob
    search: Search
    dense_cost: int
    target: int

    def run(
        self, saved: SavedSearch, modes: Sequence[Mode], note: Callable[[str], None]
    ) -> tuple[SavedSearch, dict[str, Any]]:
        """Run one stage and return the search and its line.

        The stage is undone and repeated while another mode is known to cost far less.
        """
        done = self._attempted(saved, modes, note)
        undone: dict[str, float] = {}
        while self._may_undo:
            costs = {k: v for k, v in done.saved.costs.items() if k not in done.saved.exhausted}
            better = better_mode(costs, done.mode, done.cost, undone)
            if better is None:
                break
            done.undo()
            undone[done.mode] = done.cost
            note(f"stage {done.saved.stage}: {done.mode} cost far more than {better}")
            saved = replace(saved, costs=done.saved.costs, exhausted=done.saved.exhausted)
            done = self._attempted(saved, modes, note, better)
            if done.mode in undone:
                break
        return done.saved, done.line | {"undone": undone}

    @property
    def _may_undo(self) -> bool:
        """Whether stages may be undone: not if stages train, nor for a streamed model."""
        options = self.job.options
        return (
            options.strategy.undo
            and options.strategy.cost_aware
            and not options.comp_steps
            and not streamed_layers(self.job.adapter.model)
        )

    def _attempted(
        self,
        saved: SavedSearch,
        modes: Sequence[Mode],
        note: Callable[[str], None],
        given: str | None = None,
    ) -> _Attempt:
        """Choose a mode unless it is given, raise its threshold, train, measure, update its cost."""
        stage = saved.stage + 1
        if stage > MAX_STAGES_FACTOR * self.job.options.stages:
            raise CompExportError(
                f"rate {self.job.options.rate} was not reached in {stage - 1} stages: choose a smaller "
                "--rate or add modes with --modes"
            )
        name, explored, moved, exhausted = self._advanced(saved, modes, stage, note, given)
        after = self.search.cost(moved)
        taken = self._steps_at(self.search.cost(saved.state))
        steps = self._steps_at(after) - taken

        # Refitting already compensates for the whole cut, so the masks of its units do not decay again.
        before_cut = saved.state
        undo = _refitted(self.job, self.search.forwarding(before_cut), moved.masks, self._may_undo)
        if self.job.options.reconstruct:
            before_cut = replace(before_cut, masks=moved.masks)

        def forwarding_at(step: int) -> Forwarding:
            return self.search.softly(before_cut, moved, (step + 1) / steps)

        self.job.train(taken, steps, forwarding_at)
        measured = evaluate_stage(
            self.job, self.search.forwarding(moved), at_an_end=after <= self.target
        )
        removed = self.search.cost(saved.state) - after
        before = saved.metric if saved.quality is None else saved.quality
        cost = stage_cost(before, measured.quality, removed / self.dense_cost)
        costs = saved.costs | {
            name: updated_cost(self.job.options.strategy, saved.costs[name], stage, cost)
        }
        line = {
            "stage": stage,
            "mode": name,
            "explored": explored,
            "macs": self.search.macs(moved),
            "rate": 1 - after / self.dense_cost,
            "metric": measured.metric,
            "validation_loss": measured.loss,
            "cost": cost,
            "costs": {key: value.cost for key, value in costs.items()},
            "thresholds": asdict(moved.thresholds),
            "keep_ratios": {name_of(place): list(share) for place, share in moved.shares.items()},
        }
        milliseconds = self.search.milliseconds(moved)
        if milliseconds is not None:
            line["milliseconds"] = milliseconds
        metric = saved.metric if measured.metric is None else measured.metric
        dense = saved.dense_metric
        saved_after = SavedSearch(moved, stage, metric, dense, costs, exhausted, measured.quality)
        return _Attempt(name, cost, saved_after, line, undo)

    def _steps_at(self, cost: int) -> int:
        """Training steps taken once ``cost`` is left: a stage trains in proportion to what it removes."""
        progress = (self.dense_cost - cost) / (self.dense_cost - self.target)
        return round(min(1.0, progress) * self.job.options.comp_steps)

    def _advanced(
        self,
        saved: SavedSearch,
        modes: Sequence[Mode],
        stage: int,
        note: Callable[[str], None],
        given: str | None = None,
    ) -> tuple[str, bool, SearchState, tuple[str, ...]]:
        """Choose a mode and raise its threshold.

        A mode with little left to remove is exhausted, and another is chosen: its cost would be the noise
        of the metric divided by almost nothing. The bound on what a part may lose in one stage does not
        exhaust its mode, or a small part would never be pruned. When all modes are exhausted, stages
        remove what they have left.

        Returns:
            The mode, whether exploration drew it, the new state, and the exhausted modes.

        Raises:
            CompExportError: all modes together cannot reach the rate.
        """
        before, stages = self.search.cost(saved.state), self.job.options.stages
        wanted = min((self.dense_cost - self.target) / stages, before - self.target)
        for to_the_end in (False, True):
            worthwhile, exhausted = (LITTLE, ()) if to_the_end else (WORTHWHILE, saved.exhausted)
            while open_modes := {k: v for k, v in saved.costs.items() if k not in exhausted}:
                name, explored = (
                    (given, False)
                    if given in open_modes
                    else choose_mode(
                        self.job.options.strategy, open_modes, stage, self.job.options.seed
                    )
                )
                note(f"stage {stage}: {name}")
                mode = next(mode for mode in modes if mode.name == name)
                moved = self.search.advance(saved.state, mode, round(before - wanted), to_the_end)
                tried = open_modes[name].cost is not None
                least = worthwhile if tried and len(open_modes) > 1 else LITTLE
                removed = before - self.search.cost(moved)
                left = before - self.search.floor(saved.state, [mode]) if mode.part else removed
                if left >= least * wanted and removed >= LITTLE * wanted:
                    return name, explored, moved, exhausted
                note(f"stage {stage}: {name} has little left to remove")
                exhausted = (*exhausted, name)
        raise CompExportError(
            f"rate {self.job.options.rate} is beyond what modes {', '.join(saved.costs)} can reach "
            "together: choose a smaller --rate or add modes with --modes"
        )


@dataclass(frozen=True)
class StageQuality:
    """The measured quality of a model.

    Attributes:
        quality: the value that Eq. 8 compares, higher is better: the metric, or minus the loss in nats.
        metric: on the whole validation set; ``None`` if it was not measured.
        loss: on the examples that ``quality`` was measured on, in nats.
    """

    quality: float
    metric: float | None
    loss: float


def evaluate_stage(job: PruningJob, forwarding: Forwarding, at_an_end: bool) -> StageQuality:
    """Measure the job's model; if ``at_an_end`` of a search, always with its metric."""
    data, compute = job.data, job.compute
    batches = data.validation if data.cost is None else data.cost
    with compute.timed("cost"):
        if job.options.strategy.cost_metric == "loss":
            loss = mean_loss(job.adapter, batches, forwarding, compute)
            quality = StageQuality(-loss, None, loss)
        else:
            metric, loss = accuracy(job.adapter, batches, forwarding, compute)
            quality = StageQuality(metric, metric if data.cost is None else None, loss)
    if quality.metric is None and at_an_end:
        metric, _ = accuracy(job.adapter, data.validation, forwarding, compute)
        return replace(quality, metric=metric)
    return quality
