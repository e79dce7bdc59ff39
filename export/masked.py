"""Masked torch models: a dense model that gives what its cut one gives, and can be listened to."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from comp.families.base import FamilyAdapter
from comp.families.cuts import Cut
from comp.masks import Masks
from comp.plan import PruningPlan
from comp.tokens import RatioRule


@dataclass
class Listening:
    """A drop rule that remembers the scores it was asked about: they tell a tie from a difference."""

    rule: RatioRule
    heard: list[Tensor] = field(default_factory=list)

    def keep(self, importance: Tensor, kind: Tensor, alive: Tensor, query: Tensor) -> Tensor:
        self.heard.append(importance)
        return self.rule.keep(importance, kind, alive, query)


def fill_kept(dense: FamilyAdapter, slim: FamilyAdapter, cut: Callable[[str], Cut | None]) -> None:
    """Put the slim model's weights into their places in the dense one.

    Removed rows and columns keep their dense values: masks alone silence them. Changes the dense
    model's weights in place, so that a large model is not held twice.
    """
    trained = slim.model.state_dict()
    with torch.no_grad():
        for name, tensor in dense.model.state_dict().items():
            found = cut(name)
            if found is None:
                tensor.copy_(trained[name])
            else:
                keep = torch.tensor(found.keep, device=tensor.device)
                tensor.index_copy_(found.axis, keep, trained[name].to(tensor.device))


def masks_of(dense: FamilyAdapter, plan: PruningPlan) -> Masks:
    """The plan's masks; blocks that it says nothing of are whole."""
    whole, cuts = Masks.ones(dense.blocks), Masks.from_plan(plan.blocks)
    return Masks(whole.heads | cuts.heads, whole.channels | cuts.channels)
