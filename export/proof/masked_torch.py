"""Masked torch models: a dense model that computes the same as its slim one and records scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from comp.adapter import FamilyAdapter
from comp.checkpoints.slices import Cut
from comp.families.encoder.forward import Encoded
from comp.families.streamed import MatrixSource, StreamedLinear, streamed_layers
from comp.masks import Masks
from comp.plan import Merge, PruningPlan, Ranking
from comp.tokens.drop_rules import DropRule, RatioRule


@dataclass
class RecordingRule(DropRule):
    """A drop rule that records the scores it gets: they distinguish a tie from a difference."""

    rule: RatioRule
    scores: list[Tensor] = field(default_factory=list)

    @property
    def ranking(self) -> Ranking:
        return self.rule.ranking

    @property
    def merge(self) -> Merge:
        return self.rule.merge

    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        self.scores.append(importance)
        return self.rule.keep(importance, kind, alive, query)


class Indexed(Protocol):
    """Tokens with their original indices ``[B, k]``."""

    @property
    def index(self) -> Tensor: ...


def recorded_scores(
    recorder: RecordingRule, encoded: Encoded, number: int, row: int = 0
) -> np.ndarray:
    """See ``scores_at``: those of an encoder's tokens."""
    return scores_at(recorder, encoded.entered.shape[1], encoded.kept, number, row)


def scores_at(
    recorder: RecordingRule, count: int, kept: Mapping[int, Indexed], number: int, row: int = 0
) -> np.ndarray:
    """The scores of one row at a rule's place, by original index ``[N]``; NaN for tokens dropped before.

    Args:
        recorder: the rule.
        count: tokens ``N`` of the row before the first block.
        kept: tokens that stayed at each place, by the number of blocks before it.
        number: blocks before the rule's place.
        row: row of the batch.
    """
    earlier = [passed for passed in kept if passed < number]
    present = np.arange(count)
    if earlier:
        present = kept[max(earlier)].index[row].cpu().numpy()
    scores = np.full(count, np.nan)
    scores[present] = recorder.scores[0][row].double().cpu().numpy()
    return scores


@dataclass(frozen=True)
class _Overlaid:
    """A matrix with that of another layer at the indices that a cut keeps."""

    under: MatrixSource
    over: StreamedLinear
    cut: Cut | None

    @property
    def size(self) -> tuple[int, ...]:
        return self.under.size

    def read(self) -> Tensor:
        over = self.over.weight.float()
        if self.cut is None:
            return over
        return (
            self.under.read().float().index_copy_(self.cut.axis, torch.tensor(self.cut.keep), over)
        )


def fill_kept(dense: FamilyAdapter, slim: FamilyAdapter, cut: Callable[[str], Cut | None]) -> None:
    """Copy the slim model's weights into their places in the dense one.

    Removed rows and columns keep their dense values: only masks silence them. The dense model is changed
    in place, so that a large model is not held twice.
    """
    streamed = streamed_layers(slim.model)
    for name, layer in streamed_layers(dense.model).items():
        layer.stored = _Overlaid(layer.stored, streamed[name], cut(f"{name}.weight"))
    trained = slim.model.state_dict()
    with torch.no_grad():
        for name, tensor in dense.model.state_dict().items():
            kept = cut(name)
            if kept is None:
                tensor.copy_(trained[name])
            else:
                keep = torch.tensor(kept.keep, device=tensor.device)
                tensor.index_copy_(kept.axis, keep, trained[name].to(tensor.device))


def masks_of(dense: FamilyAdapter, plan: PruningPlan) -> Masks:
    """The plan's masks; blocks that it does not mention stay whole."""
    whole, cuts = Masks.ones(dense.blocks), Masks.from_plan(plan.blocks)
    return Masks(whole.heads | cuts.heads, whole.channels | cuts.channels)
