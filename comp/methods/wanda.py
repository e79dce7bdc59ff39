"""Wanda for structures: score by weight magnitude times input norm, remove the same share of every layer.

Paper: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024). The
original zeroes single weights; here whole heads and channels are removed, so that the model is faster.

Steps: score heads and channels once on the calibration examples (Eq. 3), solve for the share that meets
the rate, cut, and measure. Nothing is trained.

Prunes heads and FFN channels of every family. Options: ``modes``, ``align``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from comp.importance.parameters import Scores
from comp.masks import BlockKey, BlockShape, Masks, StructureCounts
from comp.methods.common.parameters import (
    Chosen,
    ParameterProblem,
    concluded,
    parameter_problem,
)
from comp.search.job import Outcome, PruningJob

METHOD = "wanda"
BISECTIONS = 40


def prune(job: PruningJob) -> Outcome:
    """Score once and cut once; see ``comp.registry.methods.Method.load``."""
    problem = parameter_problem(job)
    with job.progress.task("pruning", 3) as task:
        dense_metric, _ = job.measured()
        task.at(1)
        scores = problem.search.importance(problem.whole(), problem.parts).scores(job.adapter)
        task.at(2)
        counts = counts_at_target(problem, job.options.align)
        masks = best_kept(job.adapter.blocks, scores, counts)
        return concluded(job, problem, Chosen(masks, scores), METHOD, dense_metric)


def counts_at_target(problem: ParameterProblem, align: int) -> StructureCounts:
    """Return the counts at the smallest share, the same in every layer, that leaves at most the target MACs.

    A head is a coarse step: if the heads remove too much, the share of channels is lowered.
    """
    heads = _smallest(problem, lambda share: uniform_counts(problem, share, share, align))
    channels = _smallest(problem, lambda share: uniform_counts(problem, heads, share, align))
    return uniform_counts(problem, heads, channels, align)


def _smallest(problem: ParameterProblem, counts: Callable[[float], StructureCounts]) -> float:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if problem.macs(counts(middle)) > problem.target:
            low = middle
        else:
            high = middle
    return high


def uniform_counts(
    problem: ParameterProblem, of_heads: float, of_channels: float, align: int
) -> StructureCounts:
    """Heads and channels of each block after removing these shares from every one."""
    heads: dict[BlockKey, int] = {}
    channels: dict[BlockKey, int] = {}
    for part in problem.parts:
        blocks = [block for block in problem.blocks if block.part == part]
        keys = [block.key for block in blocks]
        groups = [block.num_key_value_heads for block in blocks]
        widths = [block.intermediate_size for block in blocks]
        heads |= dict(zip(keys, carried(groups, of_heads, 1, 1), strict=True))
        left = carried(widths, of_channels, align, problem.min_channels)
        channels |= dict(zip(keys, left, strict=True))
    return StructureCounts(heads, channels)


def carried(sizes: Sequence[int], share: float, unit: int, least: int) -> list[int]:
    """Return the sizes left after removing ``share``, in whole units; remainders carry to the next size.

    Each size, and their sum, is within one unit of the exact share. At least ``least`` stays of each.
    """
    left: list[int] = []
    owed = 0.0
    for size in sizes:
        wanted = (1 - share) * size + owed
        count = min(size, max(min(least, size), unit * round(wanted / unit)))
        owed = wanted - count
        left.append(count)
    return left


def best_kept(blocks: Sequence[BlockShape], scores: Scores, counts: StructureCounts) -> Masks:
    """Masks that keep the ``counts`` best units of each block; blocks without a count are whole."""
    masks = Masks.ones(blocks)
    for kept, scored, left in (
        (masks.heads, scores.heads, counts.heads),
        (masks.channels, scores.channels, counts.channels),
    ):
        for key, values in scored.items():
            kept[key] = _top(values, left[key])
    return masks


def _top(values: Tensor, count: int) -> Tensor:
    mask = torch.zeros(len(values))
    mask[values.argsort(descending=True, stable=True)[:count]] = 1
    return mask
