"""Refitting a layer after a cut: what is left of its inputs takes over what the others gave.

A cut takes inputs from an output projection. Those that are left are correlated with them, so that new
weights, found by least squares on the calibration set, give nearly the old outputs without any training
(as channel pruning does it: He et al., 2017). Not of CoMP's authors: ``prune --no-reconstruction`` is
without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from comp.compute import Compute
from comp.families.base import FamilyAdapter, Forwarding
from comp.masks import BlockKey, Masks

RIDGE: Final = 0.01  # of the mean square of the inputs
PRODUCTS: Final = 1 << 28  # numbers that are held at a time: 1 GiB

Place = tuple[BlockKey, str]  # a block, and ``heads`` or ``channels``


@dataclass(frozen=True)
class Cut:
    """Inputs of one output projection, before and after, as bool masks over its columns."""

    projection: nn.Linear
    before: Tensor
    after: Tensor


def reconstruct(
    adapter: FamilyAdapter,
    compute: Compute,
    calibration: Sequence[Any],
    how: Forwarding,
    after: Masks,
) -> None:
    """Change the weights of the output projections that ``after`` takes inputs from.

    Columns of what is gone keep their weights, which binary masks keep out.

    Args:
        adapter: its weights are changed in place.
        compute: its device and processes.
        calibration: batches to fit on.
        how: the model before the cut; its masks, binary, say what was left.
        after: binary masks. What they give back starts from nothing.
    """
    before = Masks.ones(adapter.blocks) if how.masks is None else how.masks
    cuts = dict(_cuts(adapter, before, after))
    for places in _groups(cuts):
        products = InputProducts(places)
        with torch.no_grad(), compute.autocast():
            for batch in calibration:
                adapter.score(batch, how, products)
        for place in places:
            refit(cuts[place], compute.mean(products.of[place]))


@dataclass
class InputProducts:
    """Sums of ``x x^T`` over tokens that take part, of the inputs x of some output projections.

    An observer of forward passes (``comp.families.observe.Observer``). A one is appended to x, for the
    bias.
    """

    places: Sequence[Place]
    of: dict[Place, Tensor] = field(default_factory=dict)

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        self._add((key, "heads"), mixed, importance)

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        self._add((key, "channels"), hidden, importance)

    def _add(self, place: Place, inputs: Tensor, importance: Tensor) -> None:
        if place not in self.places:
            return
        rows = inputs[(importance > 0).to(inputs.device)].float()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        with torch.autocast(rows.device.type, enabled=False):
            products = rows.T @ rows
        self.of[place] = self.of[place] + products if place in self.of else products


@torch.no_grad()
def refit(cut: Cut, products: Tensor) -> None:
    """Ridge regression of the old outputs on what is left, towards the old weights.

    With inputs x, old weights ``W`` and what is gone D and left S: the change of ``W_S`` is
    ``W_D (G_DS (G_SS + r I)^-1)``, ``G = sum x x^T``; a bias changes as the weight of an input of one.

    Args:
        cut: of a projection ``[out, in]``.
        products: G, ``[in + 1, in + 1]``, the last input being one.
    """
    projection = cut.projection
    weight, device = projection.weight, projection.weight.device
    before, after = cut.before.to(device), cut.after.to(device)
    left = torch.cat([after, after.new_full((1,), projection.bias is not None)])
    gone = torch.cat([before & ~after, before.new_zeros(1)])
    products = products.to(device, torch.float64)
    size = max(float(products.diagonal()[:-1].mean()), 1e-12)  # inputs may all be zero
    ridge = torch.full((len(left),), RIDGE * size, dtype=torch.float64, device=device)
    ridge[-1] = 0  # the bias is free
    among = (products + torch.diag(ridge))[left][:, left]
    taken_over = torch.linalg.solve(among, products[left][:, gone])  # [S, D]
    change = weight[:, gone[:-1]].double() @ taken_over.T
    inputs = after.nonzero()[:, 0]
    known = torch.where(before, weight.double(), 0.0)[:, inputs]
    weight[:, inputs] = (known + change[:, : len(inputs)]).to(weight.dtype)
    if projection.bias is not None:
        projection.bias.add_(change[:, -1].to(projection.bias.dtype))


def _cuts(adapter: FamilyAdapter, before: Masks, after: Masks) -> Iterator[tuple[Place, Cut]]:
    """Of every projection whose inputs change."""
    for block in adapter.blocks:
        attention, ffn = adapter.output_projections(block.key)
        sides = (
            ("heads", attention, before.heads, after.heads),
            ("channels", ffn, before.channels, after.channels),
        )
        for kind, projection, old, new in sides:
            if projection is None or torch.equal(old[block.key], new[block.key]):
                continue
            width = projection.weight.shape[1] // len(old[block.key])
            masks = (mask[block.key].repeat_interleave(width) > 0.5 for mask in (old, new))
            yield (block.key, kind), Cut(projection, *masks)


def _groups(cuts: dict[Place, Cut]) -> Iterator[list[Place]]:
    """Places whose products fit into memory together."""
    group: list[Place] = []
    held = 0
    for place, cut in cuts.items():
        numbers = (len(cut.before) + 1) ** 2
        if group and held + numbers > PRODUCTS:
            yield group
            group, held = [], 0
        group.append(place)
        held += numbers
    if group:
        yield group
