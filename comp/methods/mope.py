"""MoPE: rank modules by how much the task's loss rises without them; prune width, then depth.

Paper: Lin et al., "MoPE-CLIP: Structured Pruning for Efficient Vision-Language Models with Module-wise
Pruning Error Metric" (CVPR 2024).

Steps:

1. Mask each head and each group of FFN channels alone, and measure the loss on the calibration examples.
   The loss, not the accuracy: removing one module rarely changes any of a few dozen answers.
2. Width: remove the modules with the smallest rise, until ``WIDTH_SHARE`` of the FLOPs to remove is gone.
3. Depth: reduce whole blocks to one head and ``min_channels`` channels, smallest rise per FLOP first.

Prunes heads and FFN channels of every family. Nothing is trained. Options: ``modes``, ``align``.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comp.adapter import Forwarding
from comp.importance.parameters import Scores, Unit, ordered_units
from comp.masks import BlockKey, BlockShape, Masks, name_of
from comp.methods.common.parameters import (
    Chosen,
    ParameterProblem,
    concluded,
    next_line,
    parameter_problem,
)
from comp.search.job import Outcome, PruningJob
from comp.search.stage import first_reaching, mask_of
from comp.training.trainer import accuracy
from comp.utils.files import write_text

METHOD = "mope"
STATE = "mope.json"
FFN_GROUPS = (
    8  # groups of an FFN's channels: a pass for each channel would take longer than training
)
WIDTH_SHARE = 0.5  # of the FLOPs to remove; depth removes the rest


def prune(job: PruningJob) -> Outcome:
    """Measure each module's error, then prune width and depth; see ``comp.registry.methods.Method.load``."""
    problem = parameter_problem(job)
    dense_metric, _ = job.measured()
    norms = problem.search.importance(problem.whole(), problem.parts).scores(job.adapter)
    losses = Losses(job.folder / STATE, job.compute.is_main)
    job.compute.accelerator.wait_for_everyone()  # until every process has read the saved losses
    with job.progress.task("pruning", 100) as task:
        loss = _loss_on_calibration(job, problem)
        scores = width_scores(problem, norms, losses, loss, task.at)
        narrow = narrowed(problem, scores)
        metric_and_loss = job.measured(narrow)
        task.note(f"width cut: metric {metric_and_loss[0]:.3f}")
        after = problem.macs(narrow.counts()), *metric_and_loss
        line = next_line(problem, [], problem.name, dense_metric, after)
        layers = layers_by_error(problem, narrow, scores, losses, loss)
        masks = shallower(problem, narrow, layers)
    return concluded(job, problem, Chosen(masks, scores), METHOD, dense_metric, [line])


@dataclass
class Losses:
    """Measured losses by the name of what was masked, saved to a file so that a run can be resumed.

    Attributes:
        writes: whether this process writes the file; all processes measure the same means.
    """

    path: Path
    writes: bool = True
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.measured = json.loads(self.path.read_text(encoding="utf-8"))

    def of(self, name: str, measure: Callable[[], float]) -> float:
        """Return the loss saved under ``name``, or measure and save it."""
        if name not in self.measured:
            self.measured[name] = measure()
            if self.writes:
                write_text(self.path, json.dumps(self.measured))
        return self.measured[name]


Loss = Callable[[Masks], float]


def _loss_on_calibration(job: PruningJob, problem: ParameterProblem) -> Loss:
    """Return a function from masks to the loss. Image features are computed once if no mask changes them."""
    batches: Sequence[Any] = job.data.calibration
    if "vision" not in problem.parts:
        with torch.no_grad(), job.compute.autocast():
            batches = [job.adapter.with_features(batch, None) for batch in batches]
    return lambda masks: accuracy(job.adapter, batches, Forwarding(masks), job.compute)[1]


def width_scores(
    problem: ParameterProblem,
    norms: Scores,
    losses: Losses,
    loss: Loss,
    at: Callable[[float], None],
) -> Scores:
    """Return the importance of heads and channels: rank, 0 to 1, among all of the same kind and part.

    Ranks remove the same share of heads, of channels and of each part, as in the original. Channels of a
    group have consecutive ranks, those with the smallest ``norms`` (Eq. 3) first.
    """
    whole = losses.of("whole", lambda: loss(problem.whole().masks))
    heads: dict[BlockKey, Tensor] = {}
    channels: dict[BlockKey, Tensor] = {}
    for number, block in enumerate(problem.blocks):
        rises = torch.zeros(block.num_key_value_heads)
        for index in range(block.num_key_value_heads):
            name = f"head {name_of(block.key)} {index}"
            rises[index] = losses.of(name, _masked_loss(problem, loss, "heads", block, [index]))
        heads[block.key] = rises - whole
        if block.intermediate_size:
            channels[block.key] = _channel_rises(problem, block, norms, losses, loss) - whole
        at(100 * (number + 1) / len(problem.blocks))
    within = {key: torch.zeros(len(values)) for key, values in heads.items()}
    return Scores(_places(heads, within), _places(channels, norms.channels))


def _channel_rises(
    problem: ParameterProblem, block: BlockShape, norms: Scores, losses: Losses, loss: Loss
) -> Tensor:
    """Return the loss without the group of each channel, ``[intermediate_size]``."""
    rises = torch.zeros(block.intermediate_size)
    order = norms.channels[block.key].argsort(stable=True)
    for number, group in enumerate(order.tensor_split(min(FFN_GROUPS, len(order)))):
        name = f"channels {name_of(block.key)} {number}"
        measure = _masked_loss(problem, loss, "channels", block, group.tolist())
        rises[group] = losses.of(name, measure)
    return rises


def _masked_loss(
    problem: ParameterProblem, loss: Loss, kind: str, block: BlockShape, indices: list[int]
) -> Callable[[], float]:
    def measure() -> float:
        masks = problem.whole().masks
        mask_of(masks, kind, block.key)[indices] = 0
        return loss(masks)

    return measure


def _places(
    rises: dict[BlockKey, Tensor], within: dict[BlockKey, Tensor]
) -> dict[BlockKey, Tensor]:
    """Rank of each unit in its part, by the rise of the loss without it, then by ``within``."""
    places = {key: torch.zeros(len(values)) for key, values in rises.items()}
    for part in {key[0] for key in rises}:
        units = [
            (float(rises[key][index]), float(within[key][index]), key, index)
            for key in rises
            if key[0] == part
            for index in range(len(rises[key]))
        ]
        for place, (_, _, key, index) in enumerate(sorted(units)):
            places[key][index] = (place + 0.5) / len(units)
    return places


def narrowed(problem: ParameterProblem, scores: Scores) -> Masks:
    """Masks that remove the lowest scores, until ``WIDTH_SHARE`` of the FLOPs to remove is gone."""
    target = problem.dense_macs - round(WIDTH_SHARE * (problem.dense_macs - problem.target))
    units = ordered_units(scores, problem.blocks, problem.min_channels)
    return _without(problem, problem.whole().masks, units, target)


def layers_by_error(
    problem: ParameterProblem, narrow: Masks, scores: Scores, losses: Losses, loss: Loss
) -> list[list[Unit]]:
    """Removable units of each block, ordered by the rise of the loss per FLOP removed."""
    before = losses.of("narrow", lambda: loss(narrow))
    macs = problem.macs(narrow.counts())
    ranked: list[tuple[float, list[Unit]]] = []
    for block, units in _spare(problem, narrow, scores):
        flat = _cut(narrow, units)
        removed = macs - problem.macs(flat.counts())
        name = f"layer {name_of(block.key)}"
        rise = losses.of(name, lambda flat=flat: loss(flat)) - before  # type: ignore[misc]
        ranked.append((rise / removed, units))
    return [units for _, units in sorted(ranked, key=lambda pair: pair[0])]


def _spare(
    problem: ParameterProblem, narrow: Masks, scores: Scores
) -> Iterator[tuple[BlockShape, list[Unit]]]:
    """Yield each block with its units beyond the best head and ``min_channels`` channels."""
    for block in problem.blocks:
        key = block.key
        left = {key: torch.where(narrow.heads[key] > 0.5, scores.heads[key], torch.inf)}
        wide = {}
        if key in scores.channels:
            wide[key] = torch.where(narrow.channels[key] > 0.5, scores.channels[key], torch.inf)
        units = ordered_units(Scores(left, wide), (block,), problem.min_channels)
        if units:
            yield block, units


def shallower(problem: ParameterProblem, narrow: Masks, layers: Sequence[Sequence[Unit]]) -> Masks:
    """Masks with one layer after the other reduced to its minimum, until the target is met."""
    units = [unit for layer in layers for unit in layer]
    return _without(problem, narrow, units, problem.target)


def _without(problem: ParameterProblem, masks: Masks, units: Sequence[Unit], target: int) -> Masks:
    """Return the masks without the first units, the fewest that leave at most ``target`` MACs."""
    return _cut(masks, first_reaching(problem.macs, masks, units, target))


def _cut(masks: Masks, units: Sequence[Unit]) -> Masks:
    pruned = Masks(
        {key: mask.clone() for key, mask in masks.heads.items()},
        {key: mask.clone() for key, mask in masks.channels.items()},
    )
    for _, kind, key, index in units:
        mask_of(pruned, kind, key)[index] = 0
    return pruned
