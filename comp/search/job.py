"""The interface of pruning methods: the job that a method is given, and the outcome that it returns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from comp.adapter import FamilyAdapter, Forwarding, Mode, mean_prompt
from comp.errors import CompExportError
from comp.masks import Masks
from comp.plan import Drops, PruningPlan, RateOf, Workload
from comp.registry.modes import shortened
from comp.search.costs import Costs
from comp.search.stage import ImportanceOptions, Search, SearchState
from comp.search.strategy import StrategyOptions
from comp.tokens.drop_rules import rules_from_plan
from comp.training.data import PruningData
from comp.training.distillation import Distiller
from comp.training.trainer import StepOptions, Trainer, accuracy, examples_of, prefetched
from comp.utils.compute import Compute
from comp.utils.progress import Progress
from comp.utils.similar import suggestion

if TYPE_CHECKING:
    from comp.latency.table import LatencyTable

REACHABLE_MARGIN = 0.005  # of the rate: aligned widths do not meet it exactly


@dataclass(frozen=True)
class MethodOptions:
    """Options of a pruning method; see ``docs/explanation/concepts.md``.

    A method may take ``stages * steps_per_stage`` training steps. The steps that it does not take are
    given to recovery, so that every method trains equally long.
    """

    rate: float
    modes: tuple[str, ...]
    stages: int = 8
    steps_per_stage: int = 12
    align: int = 16
    seed: int = 0
    rate_of: RateOf = "flops"
    reconstruct: bool = False  # comp: refit layers after a cut (``comp.training.reconstruction``)
    train_stages: bool | None = None  # comp: see ``comp_steps``
    importance: ImportanceOptions = field(default_factory=ImportanceOptions)
    strategy: StrategyOptions = field(default_factory=StrategyOptions)
    training: StepOptions = field(default_factory=StepOptions)

    @property
    def steps(self) -> int:
        """Training steps that a method may take."""
        return self.stages * self.steps_per_stage

    @property
    def comp_steps(self) -> int:
        """Training steps that CoMP takes: none when layers are refitted, unless ``train_stages`` is set."""
        trains = not self.reconstruct if self.train_stages is None else self.train_stages
        return self.steps if trains else 0


@dataclass(frozen=True)
class PruningJob:
    """A model to prune, with its data and options.

    Attributes:
        folder: where a method saves its state and ``stages.jsonl``; resuming from it gives the same plan.
        distiller: the dense model as teacher; ``None`` trains without distillation.
        table: predicts milliseconds; ``None`` counts FLOPs alone.
    """

    adapter: FamilyAdapter
    compute: Compute
    data: PruningData
    options: MethodOptions
    model_name: str
    folder: Path
    progress: Progress
    distiller: Distiller | None = None
    table: "LatencyTable | None" = None

    @property
    def costs(self) -> Costs:
        """The costs that the rate is a share of."""
        return Costs(self.adapter, self.table, self.options.rate_of)

    def measured(self, masks: Masks | None = None, drops: Drops = ()) -> tuple[float, float]:
        """Validation metric and loss of the model with these masks (``None``: dense) and drops."""
        forwarding = Forwarding(masks, rules_from_plan(drops))
        with self.progress.step("measuring on the validation examples"):
            return accuracy(self.adapter, self.data.validation, forwarding, self.compute)

    def train(
        self,
        first: int,
        steps: int,
        forwarding_at: Callable[[int], Forwarding],
        stepped: Callable[[float], None] | None = None,
    ) -> None:
        """Train the adapter with an optimiser and a learning-rate schedule of this call.

        Args:
            first: number of steps taken before; the training data continues after them.
            steps: number of steps to take.
            forwarding_at: returns the forward pass of a step, numbered from 0.
            stepped: called after each step with a factor: gradients of other tensors times it, summed over
                processes, are those of the mean loss.
        """
        if steps == 0:
            return
        options, seed = self.options.training, self.options.seed
        trainer = Trainer(self.adapter, self.compute, options, steps, self.distiller)

        def make(step: int) -> Any:
            examples = examples_of(self.data.train, first + step, options.batch_size, seed)
            return self.adapter.collate(self.compute.shard(examples))

        for step, batch in enumerate(prefetched(self.compute, make, range(steps))):
            scale = trainer.scaler.get_scale()
            trainer.step(batch, forwarding_at(step), step)
            if stepped is not None:
                stepped(trainer.share / scale)


@dataclass(frozen=True)
class Outcome:
    """The plan, and the metrics of the dense model and of the pruned one before recovery.

    Attributes:
        steps: training steps that the method took.
    """

    plan: PruningPlan
    dense_metric: float
    pruned_metric: float
    steps: int


def modes_of(adapter: FamilyAdapter, names: Sequence[str]) -> list[Mode]:
    """Return the modes with these names.

    Raises:
        CompExportError: the model has no such mode (names those it has).
    """
    by_name = {mode.name: mode for mode in adapter.modes}
    unknown = next((name for name in names if name not in by_name), None)
    if unknown is not None:
        hint = suggestion(unknown, by_name)
        raise CompExportError(
            f"{adapter.name} models of the task {adapter.task} have no mode {unknown!r}: "
            f"{hint + ' ' if hint else ''}choose from {', '.join(by_name)}"
        )
    return [by_name[name] for name in names]


def agreed_workload(job: PruningJob) -> Workload:
    """Mean workload over all processes; each process has its own share of the calibration set."""
    mine = torch.tensor(job.adapter.token_counts(job.data.calibration))
    return mean_prompt(*job.compute.sum(mine).tolist())


def check_reachable(
    search: Search,
    state: SearchState,
    modes: Sequence[Mode],
    rate: float,
    usable: Sequence[Mode],
) -> None:
    """Refuse a rate beyond what these modes can remove from the dense model ``state``.

    Raises:
        CompExportError: names the largest reachable rate, and the ``usable`` modes that could be added.
    """
    largest = largest_rate(search, state, modes)
    if rate > largest:
        raise unreachable(rate, largest, modes, usable, largest_rate(search, state, usable))


def largest_rate(search: Search, state: SearchState, modes: Sequence[Mode]) -> float:
    """Largest rate that these modes can reach from the dense model ``state``."""
    left = search.floor(state, modes) / search.cost(state)
    return max(0.0, 1 - left - REACHABLE_MARGIN)


def reaches(job: PruningJob, modes: Sequence[Mode]) -> bool:
    """Whether these modes of the job's dense model reach its rate."""
    workload, costs = agreed_workload(job), job.costs
    options, calibration = job.options.importance, job.data.calibration
    search = Search(job.adapter, job.compute, calibration, options, workload, costs=costs)
    whole = SearchState(Masks.ones(job.adapter.blocks))
    return job.options.rate <= largest_rate(search, whole, modes)


def unreachable(
    rate: float,
    largest: float,
    modes: Sequence[Mode],
    usable: Sequence[Mode],
    largest_of_usable: float | None = None,
) -> CompExportError:
    """Return the error of a rate that modes cannot reach; rates in it are rounded down, to be reachable.

    Args:
        rate: the rate.
        largest: largest rate that the modes can reach.
        modes: the modes.
        usable: all modes that could be used.
        largest_of_usable: largest rate that these can reach; ``None`` if it is not known.
    """
    named = shortened(mode.name for mode in modes)
    needed, reached = shortened(mode.name for mode in usable), _rounded_down(largest)
    if largest_of_usable is not None and rate <= largest_of_usable:
        return CompExportError(
            f"rate {rate:g} needs --modes {needed}: {named} reach at most {reached} on this model; add "
            "the others, or choose a smaller --rate"
        )
    wider = more = ""
    if len(usable) > len(modes):
        if largest_of_usable is None:
            more = f", or try --modes {needed}"
        else:
            most = _rounded_down(largest_of_usable)
            wider = f" ({most} with --modes {needed})" if most != reached else ""
    return CompExportError(
        f"rate {rate:g} is beyond what modes {named} can reach on this model: at most {reached}{wider}; "
        f"choose a smaller --rate{more}"
    )


def _rounded_down(rate: float) -> str:
    return f"{math.floor(100 * rate) / 100:.2f}"
