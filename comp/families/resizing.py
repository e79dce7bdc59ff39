"""Replacing linear layers of a model by ones of other sizes."""

from torch import nn


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
