"""How far masking heads shuffles the ranks of tokens, with and without CIT (the paper's Figure 6).

The dense model ranks the tokens of an example; then heads are masked, little by little as a stage of the
search masks them (1 to 0, ``Masks.towards``), and it ranks them again. **Stability** is Spearman's
correlation of both rankings, block by block. With CIT the mask weighs the head's attention (Eq. 7); without,
it flattens the masked head's logits, as masking in the forward pass would.

Masked heads change ranks in two ways. Their own votes go, which is what CIT is about, and the states change
that the blocks behind them see, which is the same with CIT and without. So ranks are measured twice: with
the heads of all blocks masked, and at each place where tokens may be dropped with the heads of its block
**alone** masked, whose ranks come from the dense model's states.

Compared are the heads that the run removed with as many of each block drawn at random. Channels and tokens
all stay. Blocks count up to the last place where the model may drop tokens: behind it nothing ranks them.
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
    """Whose heads are masked, how far (0: not at all, 1: gone), with CIT or not, in one block or all."""

    chosen: Chosen
    progress: float
    calibrated: bool
    alone: bool = False


@dataclass(frozen=True)
class Stability:
    """Rank correlation in one block, over examples and, of random heads, over draws."""

    key: BlockKey
    case: Case
    correlation: Spread


def ranks(values: Tensor) -> Tensor:
    """Rank of each value ``[n]`` from 0; equal ones share their mean rank."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2)[group].double()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation of two rankings of the same tokens, each ``[n]``, n at least 2.

    0 where one of them holds all tokens equal: it ranks nothing.
    """
    first, second = (ranks(values) - ranks(values).mean() for values in (one, other))
    scale = first.norm() * second.norm()
    return 0.0 if scale == 0 else float(first @ second / scale)


@dataclass
class _Ranking:
    """Sees the importance of tokens in each block that ranks them (``comp.adapter.Observer``)."""

    wanted: frozenset[BlockKey]
    seen: dict[BlockKey, list[Tensor]] = field(default_factory=dict)

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        del mixed
        if key in self.wanted:
            self.seen.setdefault(key, []).extend(importance)

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        """FFNs rank nothing."""


def ranking_blocks(adapter: FamilyAdapter) -> frozenset[BlockKey]:
    """The blocks up to the last place of their part where tokens may be dropped."""
    last: dict[str, int] = {}
    for part, after in adapter.drop_places:
        last[part] = max(after, last.get(part, 0))
    return frozenset(block.key for block in adapter.blocks if block.index < last.get(block.part, 0))


def masks_of_run(adapter: FamilyAdapter, plan: PruningPlan) -> Masks:
    """The heads that a run left; every channel stays.

    Raises:
        CompExportError: it left all of them.
    """
    whole, left = Masks.ones(adapter.blocks), Masks.from_plan(plan.blocks)
    masks = Masks(whole.heads | left.heads, whole.channels)
    if all(bool(mask.all()) for mask in masks.heads.values()):
        raise CompExportError(
            f"the run removes no attention heads (method {plan.method}), so there are no masks whose "
            "effect on ranks could be shown: take a run whose modes prune parameters, such as "
            "`comp-export prune --method comp`"
        )
    return masks


def random_masks(masks: Masks, seed: int) -> Masks:
    """Masks that keep as many heads of each block, drawn at random."""
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
    """Stability in a dense model; ``passed`` is called behind each batch.

    Args:
        adapter: the dense model.
        plan: of a run of it.
        batches: of one example each: what is compared must not depend on what else is in a batch.
        seed: of the heads drawn.
        passed: called when a batch is done.

    Raises:
        CompExportError: the run removes no heads.
    """
    removed = masks_of_run(adapter, plan)
    targets: list[tuple[Chosen, Masks]] = [("run", removed)]
    targets += [("random", random_masks(removed, seed + draw)) for draw in range(DRAWS)]
    trials = [trial for chosen, masks in targets for trial in _trials(adapter, chosen, masks)]
    blocks = ranking_blocks(adapter)
    found: dict[tuple[BlockKey, Case], list[float]] = {}
    for batch in batches:
        dense = _Ranking(blocks)
        adapter.score(batch, Forwarding(), dense)
        for trial in trials:
            masked = _Ranking(trial.blocks)
            how = Forwarding(trial.masks, calibrated=trial.case.calibrated)
            adapter.score(batch, how, masked)
            for key, rows in masked.seen.items():
                values = _correlations(dense.seen[key], rows, adapter.has_cls(key))
                found.setdefault((key, trial.case), []).extend(values)
        passed()
    return tuple(
        Stability(key, case, Spread.of(values)) for (key, case), values in found.items() if values
    )


@dataclass(frozen=True)
class _Trial:
    """One forward pass under masks, and the blocks whose ranks are looked at."""

    case: Case
    masks: Masks
    blocks: frozenset[BlockKey]


def _trials(adapter: FamilyAdapter, chosen: Chosen, target: Masks) -> Iterator[_Trial]:
    """All heads on their way to ``target``, and those of each block with a drop place alone."""
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
    """Row by row, over the tokens that the dense model ranks."""
    for one, other in zip(dense, masked, strict=True):
        tokens = ranked_tokens(one, has_cls)
        if len(tokens) >= 2:
            yield rank_correlation(one[tokens], other[tokens])
