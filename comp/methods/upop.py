"""UPop: unified and progressive pruning, with masks that shrink while the model trains.

Paper: Shi et al., "UPop: Unified and Progressive Pruning for Compressing Vision-Language Transformers"
(ICML 2023).

Steps:

1. Give every head and every FFN channel a mask alpha, 1 at first, and train under the masks.
2. Accumulate the gradients of the loss by alpha over the search.
3. After every interval, choose the units with the largest gradients: increasing their alpha would raise
   the loss most. Their alpha becomes ``1 - p_t / p``, all others become 1.
4. Cut the units whose alpha has reached 0, and fix the plan.

Prunes heads and FFN channels of every family. Options: ``modes``, ``stages``, ``steps_per_stage``,
``align``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from comp.adapter import Forwarding
from comp.importance.parameters import Scores, Unit, ordered_units
from comp.masks import BlockKey, Masks, name_of
from comp.methods.common.parameters import (
    Chosen,
    ParameterProblem,
    concluded,
    next_line,
    parameter_problem,
)
from comp.plan import Drops
from comp.search.job import Outcome, PruningJob
from comp.search.saved_state import fill_trainable, read_lines, trainable, write_stages
from comp.search.stage import first_reaching, mask_of
from comp.tokens.drop_rules import DropRules, rules_from_plan
from comp.utils.disk import bytes_of
from comp.utils.files import writing

METHOD = "upop"
STATE = "upop.safetensors"


@dataclass(frozen=True)
class Progressive:
    """State of a search between two intervals.

    Attributes:
        stage: number of intervals done.
        alpha: masks of all blocks.
        gradients: gradients of the loss by alpha, accumulated since the start, of the blocks to prune.
    """

    stage: int
    dense_metric: float
    alpha: Masks
    gradients: Scores

    @property
    def stays(self) -> Masks:
        """Masks of 1 for units whose alpha is 1, and of 0 for those that shrink."""
        heads, channels = (
            {key: (mask == 1).float() for key, mask in of.items()}
            for of in (self.alpha.heads, self.alpha.channels)
        )
        return Masks(heads, channels)


@dataclass(frozen=True)
class Interval:
    """One stage of training.

    Attributes:
        mode: names of the modes that it advances, as in ``stages.jsonl``.
        progress: progress of shrinking at its end, 0 to 1; ``None`` leaves the masks as they are.
        drops: token drops while it trains.
        training: returns the job to train with, from the given one.
    """

    mode: str
    progress: float | None
    drops: Drops = ()
    training: Callable[[PruningJob], PruningJob] = lambda job: job


def prune(job: PruningJob) -> Outcome:
    """Train while masks shrink, interval by interval; see ``comp.registry.methods.Method.load``.

    Raises:
        CompExportError: the rate is beyond the modes.
    """
    problem, stages = parameter_problem(job), job.options.stages
    intervals = [Interval(problem.name, stage / stages) for stage in range(1, stages + 1)]
    return prune_in(job, problem, intervals, METHOD)


def prune_in(
    job: PruningJob, problem: ParameterProblem, intervals: Sequence[Interval], method: str
) -> Outcome:
    """Train the intervals that are not done yet, then cut the units that shrank to 0."""
    progressive = _load(job, problem)
    if progressive is None:
        progressive = Progressive(0, job.measured()[0], problem.whole().masks, _zeros(problem))
    with job.progress.task("pruning", len(intervals), progressive.stage) as task:
        while progressive.stage < len(intervals):
            task.at(progressive.stage)
            progressive = _advanced(job, problem, progressive, intervals, task.note)
    chosen = Chosen(progressive.stays, scores_of(progressive.gradients))
    lines, mode = read_lines(job.folder, len(intervals) - 1), intervals[-1].mode
    steps, dense_metric = job.options.steps, progressive.dense_metric
    return concluded(job, problem, chosen, method, dense_metric, lines, steps, mode)


def ramp(progress: float) -> float:
    """Return ``p_t / p = sqrt((1 - cos(pi (t + 1) / T)) / 2)`` for ``progress = (t + 1) / T``."""
    return math.sqrt((1 - math.cos(math.pi * progress)) / 2)


def scores_of(gradients: Scores) -> Scores:
    """Return importance: negated gradients, standardised over all heads and over all channels.

    The original's L1 penalty adds a constant to every gradient while alphas are positive, so that
    standardising removes it.
    """
    return Scores(_standardised(gradients.heads), _standardised(gradients.channels))


def _standardised(gradients: dict[BlockKey, Tensor]) -> dict[BlockKey, Tensor]:
    if not gradients:
        return {}
    every = torch.cat(list(gradients.values()))
    mean, deviation = every.mean(), every.std(correction=0).clamp(min=1e-12)
    return {key: (mean - values) / deviation for key, values in gradients.items()}


def units_to_cut(problem: ParameterProblem, scores: Scores, share: float) -> Sequence[Unit]:
    """Return the least important units that together make up ``share`` of the FLOPs to remove."""
    units = ordered_units(scores, problem.blocks, problem.min_channels)
    whole = problem.macs()
    target = round(whole - share * (whole - problem.target))
    return first_reaching(problem.macs, problem.whole().masks, units, target)


def masked(problem: ParameterProblem, units: Sequence[Unit], value: float) -> Masks:
    """Masks of 1, with ``value`` for these units."""
    masks = problem.whole().masks
    for _, kind, key, index in units:
        mask_of(masks, kind, key)[index] = value
    return masks


def _advanced(
    job: PruningJob,
    problem: ParameterProblem,
    before: Progressive,
    intervals: Sequence[Interval],
    note: Callable[[str], None],
) -> Progressive:
    """Run the next interval, measure, and save the search and its line."""
    interval = intervals[before.stage]
    after = _trained(interval.training(job), problem, before, interval)
    lines = read_lines(job.folder, before.stage)
    if after.stage < len(intervals):  # the last stage's line is that of the plan
        metric, loss = job.measured(after.alpha, interval.drops)
        macs = problem.macs(after.stays.counts(), interval.drops)
        note(
            f"stage {after.stage}: {1 - macs / problem.dense_macs:.0%} removed, metric {metric:.3f}"
        )
        lines.append(
            next_line(
                problem,
                lines,
                interval.mode,
                before.dense_metric,
                (macs, metric, loss),
                interval.drops,
            )
        )
    if job.compute.is_main:
        write_stages(job.folder, lines)
        _save(job, after)
        if after.stage < len(intervals):
            job.progress.stage(lines[-1])
    job.compute.accelerator.wait_for_everyone()
    return after


def _trained(
    job: PruningJob, problem: ParameterProblem, before: Progressive, interval: Interval
) -> Progressive:
    """Train for an interval under the masks; if they shrink, accumulate gradients and shrink them."""
    rules, stage = rules_from_plan(interval.drops), before.stage + 1
    if interval.progress is None:
        forwarding, steps = Forwarding(before.alpha, rules), job.options.steps_per_stage
        job.train(before.stage * steps, steps, lambda _: forwarding)
        return replace(before, stage=stage)
    gradients = _gradients(job, problem, before, rules)
    share = ramp(interval.progress)
    cut = units_to_cut(problem, scores_of(gradients), share)
    return Progressive(stage, before.dense_metric, masked(problem, cut, 1 - share), gradients)


def _gradients(
    job: PruningJob, problem: ParameterProblem, search: Progressive, rules: DropRules
) -> Scores:
    """Return accumulated gradients after an interval: of its steps or, without any, of calibration."""
    leaves = _Leaves.of(problem, search)
    forwarding = Forwarding(leaves.masks, rules)
    steps = job.options.steps_per_stage
    job.train(search.stage * steps, steps, lambda _: forwarding, leaves.take)
    if steps == 0:
        terms, found = [], []
        for batch in job.data.calibration:
            with job.compute.autocast():
                scored = job.adapter.score(batch, forwarding)
            terms.append(scored.terms)
            found.append(torch.autograd.grad(scored.loss, leaves.tensors))
        for share, gradients in zip(job.compute.shares(terms), found, strict=True):
            leaves.add([gradient * share for gradient in gradients])
    return leaves.summed(job)


class _Leaves:
    """Masks of an interval as leaf tensors, and the sums of their gradients."""

    def __init__(self, masks: Masks, names: list[tuple[str, BlockKey]], past: Scores) -> None:
        self.masks, self.names, self.past = masks, names, past
        self.tensors = [mask_of(masks, kind, key) for kind, key in names]
        self.sums = [torch.zeros_like(tensor) for tensor in self.tensors]

    @classmethod
    def of(cls, problem: ParameterProblem, search: Progressive) -> "_Leaves":
        heads, channels = dict(search.alpha.heads), dict(search.alpha.channels)
        names: list[tuple[str, BlockKey]] = []
        for kind, masks, past in (
            ("heads", heads, search.gradients.heads),
            ("channels", channels, search.gradients.channels),
        ):
            for key in past:
                masks[key] = masks[key].clone().requires_grad_()
                names.append((kind, key))
        return cls(Masks(heads, channels), names, search.gradients)

    def take(self, factor: float) -> None:
        """Add the gradients of a backward pass times this factor, and clear them."""
        gradients = []
        for (kind, key), tensor in zip(self.names, self.tensors, strict=True):
            if tensor.grad is None:
                raise RuntimeError(f"no gradient reached the {kind} of block {name_of(key)}")
            gradients.append(tensor.grad * factor)
            tensor.grad = None
        self.add(gradients)

    def add(self, gradients: Sequence[Tensor]) -> None:
        # Scaled half-precision gradients overflow sometimes: such a step is skipped for all masks.
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            for total, gradient in zip(self.sums, gradients, strict=True):
                total += gradient

    def summed(self, job: PruningJob) -> Scores:
        """Return past gradients plus the sums over all processes."""
        heads, channels = dict(self.past.heads), dict(self.past.channels)
        for (kind, key), total in zip(self.names, self.sums, strict=True):
            of = heads if kind == "heads" else channels
            of[key] = of[key] + job.compute.sum(total).cpu()
        return Scores(heads, channels)


def _zeros(problem: ParameterProblem) -> Scores:
    return Scores(
        {block.key: torch.zeros(block.num_key_value_heads) for block in problem.blocks},
        {
            block.key: torch.zeros(block.intermediate_size)
            for block in problem.blocks
            if block.intermediate_size
        },
    )


def _save(job: PruningJob, search: Progressive) -> None:
    """Write masks, gradients and weights into one file, replaced atomically."""
    tensors = {
        f"{what}/{kind}/{name_of(key)}": tensor
        for what, held in (("alpha", search.alpha), ("gradient", search.gradients))
        for kind, of in (("heads", held.heads), ("channels", held.channels))
        for key, tensor in of.items()
        if len(tensor)
    }
    weights = {f"weight/{name}": tensor for name, tensor in trainable(job.adapter).items()}
    metadata = {"stage": str(search.stage), "dense_metric": repr(search.dense_metric)}
    with writing(job.folder / STATE, bytes_of([tensors, weights])) as temporary:
        save_file(tensors | weights, temporary, metadata)


def _load(job: PruningJob, problem: ParameterProblem) -> Progressive | None:
    """Load an interrupted search and its weights into the adapter; ``None`` if there is none."""
    path = job.folder / STATE
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fill_trainable(job.adapter, _below(tensors, "weight/"))
    alpha, gradients = problem.whole().masks, _zeros(problem)
    for what, held in (("alpha", alpha), ("gradient", gradients)):
        for kind, of in (("heads", held.heads), ("channels", held.channels)):
            stored = _below(tensors, f"{what}/{kind}/")
            of.update({key: stored[name_of(key)] for key in of if name_of(key) in stored})
    return Progressive(int(metadata["stage"]), float(metadata["dense_metric"]), alpha, gradients)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
