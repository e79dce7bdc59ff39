"""Measure how stable the ranks of tokens are under masked heads, with and without CIT (Figure 6).

The dense model ranks the tokens of an example. Then heads are masked gradually, as in a stage of the search
(1 to 0, ``Masks.towards``), and it ranks them again. **Stability** is Spearman's correlation of both
rankings, by block. With CIT the mask weighs the head's attention (Eq. 7); without CIT it flattens the
masked head's logits, as masking in the forward pass would.

Masked heads change ranks in two ways: their attention no longer counts, which CIT is about, and later
blocks see different states, which is the same with and without CIT. Therefore ranks are measured twice:
with the heads of all blocks masked, and, at each drop place, with the heads of its block **alone** masked,
on the dense model's states.

The heads that the run removed are compared with the same number of heads of each block drawn at random. All
channels and tokens stay. Blocks after the last drop place are left out: nothing ranks tokens there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from comp.adapter import FamilyAdapter, Forwarding
from comp.errors import CompExportError
from comp.figures.spread import Spread
from comp.figures.token_overlap import ranked_tokens
from comp.masks import BlockKey, Masks
from comp.plan import PruningPlan

PROGRESS = (0.25, 0.5, 0.75, 1.0)
DRAWS = 3
Chosen = Literal["run", "random"]


@dataclass(frozen=True)
class Case:
    """A case: which heads are masked, how far (0: not at all, 1: removed), CIT, one block or all."""

    chosen: Chosen
    progress: float
    calibrated: bool
    alone: bool = False


@dataclass(frozen=True)
class Stability:
    """Rank correlation in one block, over examples and, for random heads, over draws."""

    key: BlockKey
    case: Case
    correlation: Spread


def ranks(values: Tensor) -> Tensor:
    """Rank of each value ``[n]`` from 0; equal values have their mean rank."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2)[group].double()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation of two rankings of the same tokens, each ``[n]`` with n at least 2.

    0 if one of them has all values equal.
    """
    first, second = (ranks(values) - ranks(values).mean() for values in (one, other))
    scale = first.norm() * second.norm()
    return 0.0 if scale == 0 else float(first @ second / scale)


@dataclass
class _Ranking:
    """Records the importance of tokens in each block that ranks them (``comp.adapter.Observer``)."""

    blocks: frozenset[BlockKey]
    seen: dict[BlockKey, list[Tensor]] = field(default_factory=dict)

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        del mixed
        if key in self.blocks:
            self.seen.setdefault(key, []).extend(importance)

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        """Ignore FFNs, which rank no tokens."""


def ranking_blocks(adapter: FamilyAdapter) -> frozenset[BlockKey]:
    """Blocks up to the last drop place of their part."""
    last: dict[str, int] = {}
    for part, after in adapter.drop_places:
        last[part] = max(after, last.get(part, 0))
    return frozenset(block.key for block in adapter.blocks if block.index < last.get(block.part, 0))


def masks_of_run(adapter: FamilyAdapter, plan: PruningPlan) -> Masks:
    """Masks with the heads that a run left, and all channels.

    Raises:
        CompExportError: the run removed no heads.
    """
    whole, left = Masks.ones(adapter.blocks), Masks.from_plan(plan.blocks)
    masks = Masks(whole.heads | left.heads, whole.channels)
    if all(bool(mask.all()) for mask in masks.heads.values()):
        raise CompExportError(
            f"the run removes no attention heads (method {plan.method}), so there are no masks whose "
            "effect on ranks could be shown: choose a run whose modes prune parameters, as of "
            "`comp-export prune --method comp`"
        )
    return masks


def random_masks(masks: Masks, seed: int) -> Masks:
    """Masks that keep the same number of heads in each block, drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(mask: Tensor) -> Tensor:
        return mask[torch.randperm(len(mask), generator=generator)]

    return Masks({key: drawn(mask) for key, mask in masks.heads.items()}, masks.channels)


@torch.no_grad()
def measure_stability(
    adapter: FamilyAdapter,
    plan: PruningPlan,
    batches: Iterable[Any],
    seed: int,
    passed: Callable[[], None],
) -> tuple[Stability, ...]:
    """Measure stability in a dense model.

    Args:
        adapter: the dense model.
        plan: plan of a run of that model.
        batches: batches of one example, so that results do not depend on other examples of a batch.
        seed: seed of the random heads.
        passed: called after each batch.

    Raises:
        CompExportError: the run removes no heads.
    """
    removed = masks_of_run(adapter, plan)
    targets: list[tuple[Chosen, Masks]] = [("run", removed)]
    targets += [("random", random_masks(removed, seed + draw)) for draw in range(DRAWS)]
    trials = [trial for chosen, masks in targets for trial in _trials(adapter, chosen, masks)]
    blocks = ranking_blocks(adapter)
    correlations: dict[tuple[BlockKey, Case], list[float]] = {}
    for batch in batches:
        dense = _Ranking(blocks)
        adapter.score(batch, Forwarding(), dense)
        for trial in trials:
            masked = _Ranking(trial.blocks)
            forwarding = Forwarding(trial.masks, calibrated=trial.case.calibrated)
            adapter.score(batch, forwarding, masked)
            for key, rows in masked.seen.items():
                values = _correlations(dense.seen[key], rows, adapter.has_cls(key))
                correlations.setdefault((key, trial.case), []).extend(values)
        passed()
    return tuple(
        Stability(key, case, Spread.of(values))
        for (key, case), values in correlations.items()
        if values
    )


@dataclass(frozen=True)
class _Trial:
    """One forward pass under masks, and the blocks whose ranks are compared."""

    case: Case
    masks: Masks
    blocks: frozenset[BlockKey]


def _trials(adapter: FamilyAdapter, chosen: Chosen, target: Masks) -> Iterator[_Trial]:
    """Yield trials with all heads between whole and ``target``, and with one drop place's block alone."""
    whole, blocks = Masks.ones(adapter.blocks), ranking_blocks(adapter)
    for calibrated in (True, False):
        for progress in PROGRESS:
            masks = whole.towards(target, progress)
            yield _Trial(Case(chosen, progress, calibrated), masks, blocks)
        for part, after in adapter.drop_places:
            key = (part, after - 1)
            if not bool(target.heads[key].all()):
                masks = Masks(whole.heads | {key: target.heads[key]}, whole.channels)
                yield _Trial(Case(chosen, 1.0, calibrated, alone=True), masks, frozenset({key}))


def _correlations(
    dense: Sequence[Tensor], masked: Sequence[Tensor], has_cls: bool
) -> Iterator[float]:
    """Yield the rank correlation of each row, over the tokens that the dense model ranks."""
    for one, other in zip(dense, masked, strict=True):
        tokens = ranked_tokens(one, has_cls)
        if len(tokens) >= 2:
            yield rank_correlation(one[tokens], other[tokens])
