"""Refitting a layer after a cut: what is left of its inputs takes over what the others gave.

A cut takes inputs from an output projection. Those that are left are correlated with them, so that new
weights, found by least squares on the calibration set, give nearly the old outputs without any training
(as channel pruning does it: He et al., 2017). Not of CoMP's authors: ``prune --no-reconstruction`` is
without it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from comp.adapter import FamilyAdapter, Forwarding
from comp.families.streamed import StreamedLinear
from comp.masks import BlockKey, Masks
from comp.utils.compute import Compute

RIDGE: Final = 0.01  # of the mean square of the inputs
PRODUCTS: Final = 1 << 28  # numbers that are held at a time: 1 GiB

Place = tuple[BlockKey, str]  # a block, and ``heads`` or ``channels``


@dataclass(frozen=True)
class Cut:
    """Inputs of one output projection, before and after, as bool masks over its columns."""

    projection: nn.Linear
    before: Tensor
    after: Tensor

    @torch.no_grad()
    def put(self, new: "Fitted") -> "Fitted":
        """Give the projection what was fitted, and return what stood there."""
        projection = self.projection
        weight = projection.weight
        left = self.after.to(weight.device)
        old = Fitted(weight[:, left], None if new.bias is None else projection.bias.clone())
        weight[:, left] = new.columns.to(weight.device)
        if isinstance(projection, StreamedLinear):
            projection.change(weight)
        if new.bias is not None:
            projection.bias.copy_(new.bias)
        return old


@dataclass(frozen=True)
class Fitted:
    """Weights of the inputs that are left, ``[out, S]``, and the bias, where there is one."""

    columns: Tensor
    bias: Tensor | None


def reconstruct(
    adapter: FamilyAdapter,
    compute: Compute,
    calibration: Sequence[Any],
    forwarding: Forwarding,
    after: Masks,
    undoable: bool = False,
) -> Callable[[], None]:
    """Change the weights of the output projections that ``after`` takes inputs from.

    Columns of what is gone keep their weights, which binary masks keep out.

    Args:
        adapter: its weights are changed in place.
        compute: its device and processes.
        calibration: batches to fit on.
        forwarding: the model before the cut; its masks, binary, say what was left.
        after: binary masks. What they give back starts from nothing.
        undoable: keep the old weights.

    Returns:
        What changes them back, if that was asked for.
    """
    before = Masks.ones(adapter.blocks) if forwarding.masks is None else forwarding.masks
    cuts = dict(_cuts(adapter, before, after))
    found: dict[Place, Fitted] = {}

    def show(observer: InputProducts) -> None:
        with torch.no_grad(), compute.autocast():
            for batch in calibration:
                adapter.score(batch, forwarding, observer)

    if len(calibration) == 1:
        show(_FittedAtOnce(list(cuts), cuts=cuts, compute=compute, found=found))
    else:
        for places in _groups(cuts):
            products = InputProducts(places)
            show(products)
            for place in places:
                found[place] = fitted(cuts[place], compute.sum(products.of[place]))
    # Not before: all are fitted to what the model gave before the cut.
    old: dict[Place, Fitted] = {}
    for place, new in found.items():
        weights = cuts[place].put(new)
        if undoable:
            old[place] = weights

    def undo() -> None:
        for place, weights in old.items():
            cuts[place].put(weights)

    return undo


@dataclass
class InputProducts:
    """Sums of ``x x^T`` over tokens that take part, of the inputs x of some output projections.

    An observer of forward passes (``comp.adapter.Observer``). A one is appended to x, for the
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


@dataclass(kw_only=True)
class _FittedAtOnce(InputProducts):
    """Of a single batch: a layer has seen all that it will see, and its products need not be kept."""

    cuts: Mapping[Place, Cut]
    compute: Compute
    found: dict[Place, Fitted]

    def _add(self, place: Place, inputs: Tensor, importance: Tensor) -> None:
        super()._add(place, inputs, importance)
        if place in self.of:
            with torch.autocast(inputs.device.type, enabled=False):
                self.found[place] = fitted(self.cuts[place], self.compute.sum(self.of.pop(place)))


@torch.no_grad()
def fitted(cut: Cut, products: Tensor) -> Fitted:
    """Ridge regression of the old outputs on what is left, towards the old weights.

    With inputs x, old weights ``W`` and what is gone D and left S: the change of ``W_S`` is
    ``W_D (G_DS (G_SS + r I)^-1)``, ``G = sum x x^T``; a bias changes as the weight of an input of one.

    Args:
        cut: of a projection ``[out, in]``.
        products: G, ``[in + 1, in + 1]``, the last input being one.
    """
    weight, bias = cut.projection.weight.detach(), cut.projection.bias
    device = products.device
    before, after = cut.before.to(device), cut.after.to(device)
    left = torch.cat([after, after.new_full((1,), bias is not None)])
    gone = torch.cat([before & ~after, before.new_zeros(1)])
    size = max(float(products.diagonal()[:-1].double().mean()), 1e-12)  # inputs may all be zero
    among = products[left][:, left].double()
    ridge = torch.full((len(among),), RIDGE * size, dtype=torch.float64, device=device)
    if bias is not None:
        ridge[-1] = 0  # the bias is free
    among.diagonal().add_(ridge)
    taken_over = torch.linalg.solve(among, products[left][:, gone].double())  # [S, D]
    weight = weight.to(device)
    change = weight[:, gone[:-1]].double() @ taken_over.T
    inputs = after.nonzero()[:, 0]
    known = torch.where(before, weight, 0.0)[:, inputs].double()
    columns = (known + change[:, : len(inputs)]).to(weight.dtype)
    if bias is None:
        return Fitted(columns, None)
    return Fitted(columns, (bias.to(device).double() + change[:, -1]).to(bias.dtype))


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
            width = projection.in_features // len(old[block.key])
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
