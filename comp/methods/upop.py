"""UPop: unified and progressive pruning, with masks that shrink while the model trains.

After Shi et al., "UPop: Unified and Progressive Pruning for Compressing Vision-Language Transformers"
(ICML 2023). Every head and every FFN channel has a mask alpha, 1 at first. The gradients of the loss by
them are added up over the search. Every interval the units with the largest, which would raise the loss
most if they grew, are those to go: their alpha becomes ``1 - p_t / p``, that of all others 1.
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
    measured,
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
    """A search between two intervals.

    Attributes:
        stage: intervals done.
        alpha: the masks of all blocks.
        gradients: of the loss by alpha, added up since the start; of the blocks to prune.
    """

    stage: int
    dense_metric: float
    alpha: Masks
    gradients: Scores

    @property
    def stays(self) -> Masks:
        """Masks of ones for what is to stay as it is, and of zeros for what shrinks."""
        heads, channels = (
            {key: (mask == 1).float() for key, mask in of.items()}
            for of in (self.alpha.heads, self.alpha.channels)
        )
        return Masks(heads, channels)


@dataclass(frozen=True)
class Interval:
    """What a stage of training does.

    Attributes:
        mode: what it advances, as ``stages.jsonl`` names it.
        progress: that shrinking has made at its end, 0 to 1; none leaves the masks as they are.
        drops: of tokens, while it trains.
        training: the job as it trains.
    """

    mode: str
    progress: float | None
    drops: Drops = ()
    training: Callable[[PruningJob], PruningJob] = lambda job: job


def prune(job: PruningJob) -> Outcome:
    """Train while masks shrink, interval by interval; see ``comp.pipeline.steps.method``."""
    problem, stages = parameter_problem(job), job.options.stages
    intervals = [Interval(problem.name, stage / stages) for stage in range(1, stages + 1)]
    return prune_in(job, problem, intervals, METHOD)


def prune_in(
    job: PruningJob, problem: ParameterProblem, intervals: Sequence[Interval], method: str
) -> Outcome:
    """Train in these intervals, going on behind those that are done, and cut what they chose."""
    found = _load(job, problem)
    if found is None:
        found = Progressive(0, measured(job, None)[0], problem.whole().masks, _nothing(problem))
    with job.progress.task("pruning", len(intervals)) as task:
        while found.stage < len(intervals):
            task.at(found.stage)
            found = _advanced(job, problem, found, intervals, task.note)
    chosen = Chosen(found.stays, scores_of(found.gradients))
    lines, mode = read_lines(job.folder, len(intervals) - 1), intervals[-1].mode
    steps, dense_metric = job.options.steps, found.dense_metric
    return concluded(job, problem, chosen, method, dense_metric, lines, steps, mode)


def ramp(progress: float) -> float:
    """``p_t / p = sqrt((1 - cos(pi (t + 1) / T)) / 2)``, ``progress`` being ``(t + 1) / T``."""
    return math.sqrt((1 - math.cos(math.pi * progress)) / 2)


def scores_of(gradients: Scores) -> Scores:
    """Importance: the gradients, standardised over all attention and over all FFNs apart, negated.

    An L1 penalty would add the same to every gradient, as long as alphas are positive, and falls out here.
    """
    return Scores(_standardised(gradients.heads), _standardised(gradients.channels))


def _standardised(gradients: dict[BlockKey, Tensor]) -> dict[BlockKey, Tensor]:
    if not gradients:
        return {}
    every = torch.cat(list(gradients.values()))
    mean, deviation = every.mean(), every.std(correction=0).clamp(min=1e-12)
    return {key: (mean - values) / deviation for key, values in gradients.items()}


def going(problem: ParameterProblem, scores: Scores, share: float) -> Sequence[Unit]:
    """The units to go once ``share`` of the FLOPs to remove is removed; each weighs its FLOPs."""
    units = ordered_units(scores, problem.blocks, problem.min_channels)
    whole = problem.macs()
    target = round(whole - share * (whole - problem.target))
    return first_reaching(problem.macs, problem.whole().masks, units, target)


def masked(problem: ParameterProblem, units: Sequence[Unit], value: float) -> Masks:
    """Masks of ones, but of these units ``value``."""
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
    """The search behind its next interval, measured and written down."""
    interval = intervals[before.stage]
    after = _trained(interval.training(job), problem, before, interval)
    lines = read_lines(job.folder, before.stage)
    if after.stage < len(intervals):  # the last stage's line is that of the plan
        metric, loss = measured(job, after.alpha, interval.drops)
        macs = problem.macs(after.stays.counts(), interval.drops)
        note(f"stage {after.stage}: {1 - macs / problem.dense_macs:.0%} gone, metric {metric:.3f}")
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
    job.compute.accelerator.wait_for_everyone()
    return after


def _trained(
    job: PruningJob, problem: ParameterProblem, before: Progressive, interval: Interval
) -> Progressive:
    """Train for an interval under the masks; where they shrink, add up their gradients and shrink them."""
    rules, stage = rules_from_plan(interval.drops), before.stage + 1
    if interval.progress is None:
        forwarding, steps = Forwarding(before.alpha, rules), job.options.steps_per_stage
        job.train(before.stage * steps, steps, lambda _: forwarding)
        return replace(before, stage=stage)
    gradients = _gradients(job, problem, before, rules)
    share = ramp(interval.progress)
    cut = going(problem, scores_of(gradients), share)
    return Progressive(stage, before.dense_metric, masked(problem, cut, 1 - share), gradients)


def _gradients(
    job: PruningJob, problem: ParameterProblem, search: Progressive, rules: DropRules
) -> Scores:
    """Gradients by alpha with those of an interval added: of its steps, or without of calibration."""
    leaves = _Leaves.of(problem, search)
    forwarding = Forwarding(leaves.masks, rules)
    steps = job.options.steps_per_stage
    job.train(search.stage * steps, steps, lambda _: forwarding, leaves.take)
    if steps == 0:
        for batch in job.data.calibration:
            with job.compute.autocast():
                loss = job.adapter.score(batch, forwarding).loss
            leaves.add(torch.autograd.grad(loss, leaves.tensors))
    return leaves.summed(job)


class _Leaves:
    """The masks of an interval, to be differentiated by, and what their gradients add up to."""

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

    def take(self, scale: float) -> None:
        """Add the gradients that a scaled backward pass left, and clear them."""
        found = []
        for (kind, key), tensor in zip(self.names, self.tensors, strict=True):
            if tensor.grad is None:
                raise RuntimeError(f"no gradient reached the {kind} of block {name_of(key)}")
            found.append(tensor.grad / scale)
            tensor.grad = None
        self.add(found)

    def add(self, gradients: Sequence[Tensor]) -> None:
        # Scaled half-precision gradients overflow now and then: such a step is left out everywhere.
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            for total, gradient in zip(self.sums, gradients, strict=True):
                total += gradient

    def summed(self, job: PruningJob) -> Scores:
        """With the past ones, over all processes."""
        heads, channels = dict(self.past.heads), dict(self.past.channels)
        for (kind, key), total in zip(self.names, self.sums, strict=True):
            of = heads if kind == "heads" else channels
            of[key] = of[key] + job.compute.mean(total).cpu()
        return Scores(heads, channels)


def _nothing(problem: ParameterProblem) -> Scores:
    return Scores(
        {block.key: torch.zeros(block.num_key_value_heads) for block in problem.blocks},
        {
            block.key: torch.zeros(block.intermediate_size)
            for block in problem.blocks
            if block.intermediate_size
        },
    )


def _save(job: PruningJob, search: Progressive) -> None:
    """Masks, gradients and weights in one file: a kill leaves the last whole one."""
    tensors = {
        f"{what}/{kind}/{name_of(key)}": tensor
        for what, held in (("alpha", search.alpha), ("gradient", search.gradients))
        for kind, of in (("heads", held.heads), ("channels", held.channels))
        for key, tensor in of.items()
        if len(tensor)
    }
    weights = {f"weight/{name}": tensor for name, tensor in trainable(job.adapter).items()}
    known = {"stage": str(search.stage), "dense_metric": repr(search.dense_metric)}
    with writing(job.folder / STATE, bytes_of([tensors, weights])) as temporary:
        save_file(tensors | weights, temporary, known)


def _load(job: PruningJob, problem: ParameterProblem) -> Progressive | None:
    """The search that a cut left, its weights loaded into the adapter; none when there is none."""
    path = job.folder / STATE
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        known = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fill_trainable(job.adapter, _below(tensors, "weight/"))
    alpha, gradients = problem.whole().masks, _nothing(problem)
    for what, held in (("alpha", alpha), ("gradient", gradients)):
        for kind, of in (("heads", held.heads), ("channels", held.channels)):
            found = _below(tensors, f"{what}/{kind}/")
            of.update({key: found[name_of(key)] for key in of if name_of(key) in found})
    return Progressive(int(known["stage"]), float(known["dense_metric"]), alpha, gradients)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
