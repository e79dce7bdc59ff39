"""Making a slim model: linear layers of other sizes, and the weights of the dense one, cut."""

from collections.abc import Callable

import torch
from torch import nn

from comp.checkpoints.slices import Cut
from comp.families.streamed import streamed_layers


def fill_slim(slim: nn.Module, dense: nn.Module, cut: Callable[[str], Cut | None]) -> None:
    """Give a model that was made on the meta device its weights and buffers, as copies.

    Args:
        slim: with the sizes that are left; changed in place.
        dense: whose weights it gets.
        cut: of each tensor by its name; none where it stays whole.
    """
    for name, layer in streamed_layers(dense).items():
        slim.set_submodule(name, layer.cut(cut(f"{name}.weight")))
    state = {}
    for name, tensor in dense.state_dict().items():
        found = cut(name)
        if found is not None:
            keep = torch.tensor(found.keep, device=tensor.device)
            tensor = tensor.index_select(found.axis, keep)
        state[name] = tensor.clone()
    slim.load_state_dict(state, strict=True, assign=True)
    # Buffers that are not saved (RoPE frequencies, position ids) are not in the state dict.
    buffers = dict(dense.named_buffers())
    for name, _ in list(slim.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        slim.get_submodule(owner)._buffers[leaf] = buffers[name].clone()


def set_out(owner: nn.Module, names: tuple[str, ...], width: int) -> None:
    """Give these layers so many outputs."""
    for name in names:
        old = getattr(owner, name)
        if old.out_features != width:
            setattr(owner, name, _linear(old, old.in_features, width))


def set_in(owner: nn.Module, name: str, width: int) -> None:
    """Give a layer so many inputs."""
    old = getattr(owner, name)
    if old.in_features != width:
        setattr(owner, name, _linear(old, width, old.out_features))


def _linear(like: nn.Linear, width_in: int, width_out: int) -> nn.Linear:
    return nn.Linear(
        width_in,
        width_out,
        bias=like.bias is not None,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
