"""Refit output projections after a cut, so that the remaining inputs replace the removed ones.

A cut removes inputs of an output projection. The remaining inputs are correlated with them. Weights fitted
by least squares on the calibration set therefore give nearly the old outputs, without training (as channel
pruning does: He et al., 2017). This is not part of CoMP: ``prune --no-reconstruction`` turns it off.
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

RIDGE: Final = 0.01  # ridge term, relative to the mean square of the inputs
PRODUCTS: Final = 1 << 28  # most numbers of products held at a time: 1 GiB

Place = tuple[BlockKey, str]  # a block, and ``heads`` or ``channels``


@dataclass(frozen=True)
class Cut:
    """Inputs of an output projection before and after a cut, as bool masks over its columns."""

    projection: nn.Linear
    before: Tensor
    after: Tensor

    @torch.no_grad()
    def put(self, new: "Fitted") -> "Fitted":
        """Write fitted weights into the projection, and return the old ones."""
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
    """Weights of the remaining inputs, ``[out, S]``, and the bias, if there is one."""

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
    """Refit the output projections whose inputs ``after`` reduces.

    Columns of removed inputs keep their weights: binary masks make them ineffective.

    Args:
        adapter: its weights are changed in place.
        compute: its device and processes.
        calibration: batches to fit on.
        forwarding: the model before the cut, with binary masks.
        after: binary masks after the cut. Inputs that they restore start from zero weights.
        undoable: keep the old weights.

    Returns:
        A function that restores the old weights (only if ``undoable``).
    """
    before = Masks.ones(adapter.blocks) if forwarding.masks is None else forwarding.masks
    cuts = dict(_cuts(adapter, before, after))
    new_weights: dict[Place, Fitted] = {}

    def show(observer: InputProducts) -> None:
        with torch.no_grad(), compute.autocast():
            for batch in calibration:
                adapter.score(batch, forwarding, observer)

    if compute.longest(len(calibration)) == 1:
        show(_FittedAtOnce(list(cuts), cuts=cuts, compute=compute, new_weights=new_weights))
    else:
        for places in _groups(cuts):
            products = InputProducts(places)
            show(products)
            for place in places:
                new_weights[place] = fitted(cuts[place], compute.sum(products.of[place]))
    # Only now: every projection is fitted to the outputs of the model before the cut.
    old: dict[Place, Fitted] = {}
    for place, new in new_weights.items():
        weights = cuts[place].put(new)
        if undoable:
            old[place] = weights

    def undo() -> None:
        for place, weights in old.items():
            cuts[place].put(weights)

    return undo


@dataclass
class InputProducts:
    """Sums of ``x x^T`` over tokens, for the inputs x of some output projections.

    An observer of forward passes (``comp.adapter.Observer``). A 1 is appended to x for the bias.
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
    """Fits each layer at once, for a single batch, so that its products need not be kept."""

    cuts: Mapping[Place, Cut]
    compute: Compute
    new_weights: dict[Place, Fitted]

    def _add(self, place: Place, inputs: Tensor, importance: Tensor) -> None:
        super()._add(place, inputs, importance)
        if place in self.of:
            with torch.autocast(inputs.device.type, enabled=False):
                self.new_weights[place] = fitted(
                    self.cuts[place], self.compute.sum(self.of.pop(place))
                )


@torch.no_grad()
def fitted(cut: Cut, products: Tensor) -> Fitted:
    """Ridge regression of the old outputs on the remaining inputs, towards the old weights.

    With inputs x, old weights ``W``, removed inputs D and remaining inputs S, the change of ``W_S`` is
    ``W_D (G_DS (G_SS + r I)^-1)`` with ``G = sum x x^T``. The bias is the weight of a constant input of 1.

    Args:
        cut: cut of a projection ``[out, in]``.
        products: G, ``[in + 1, in + 1]``, for inputs with a 1 appended.
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
    old_columns = torch.where(before, weight, 0.0)[:, inputs].double()
    columns = (old_columns + change[:, : len(inputs)]).to(weight.dtype)
    if bias is None:
        return Fitted(columns, None)
    return Fitted(columns, (bias.to(device).double() + change[:, -1]).to(bias.dtype))


def _cuts(adapter: FamilyAdapter, before: Masks, after: Masks) -> Iterator[tuple[Place, Cut]]:
    """Yield the cut of every projection whose inputs change."""
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
    """Yield groups of places whose products fit into memory together."""
    group: list[Place] = []
    size = 0
    for place, cut in cuts.items():
        numbers = (len(cut.before) + 1) ** 2
        if group and size + numbers > PRODUCTS:
            yield group
            group, size = [], 0
        group.append(place)
        size += numbers
    if group:
        yield group
