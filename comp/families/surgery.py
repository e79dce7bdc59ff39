"""Make a slim model: resize linear layers, and fill them with cut weights of the dense model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from comp.checkpoints.pruning_entry import PruningEntry
from comp.checkpoints.slices import Cut
from comp.families.streamed import streamed_layers
from comp.plan import PruningPlan


def slim_model(
    dense: Any, slim_type: Any, plan: PruningPlan, cut: Callable[[str], Cut | None]
) -> Any:
    """Return the slim model of a plan that names every block, with the weights of a dense model.

    Args:
        dense: a model of transformers.
        slim_type: class of the slim one.
        plan: recorded in the configuration.
        cut: returns the cut of a tensor by its name; ``None`` keeps it whole.
    """
    settings = dense.config.to_dict() | {"pruning": PruningEntry.of_plan(plan).to_json()}
    settings.pop("model_type", None)
    with torch.device("meta"):
        slim = slim_type(slim_type.config_class(**settings))
    _fill(slim, dense, cut)
    slim.tie_weights()
    return slim


def _fill(slim: nn.Module, dense: nn.Module, cut: Callable[[str], Cut | None]) -> None:
    """Copy weights and buffers of a dense model, cut, into a slim one on the meta device."""
    for name, layer in streamed_layers(dense).items():
        slim.set_submodule(name, layer.cut(cut(f"{name}.weight")))
    state = {}
    for name, tensor in dense.state_dict().items():
        tensor_cut = cut(name)
        if tensor_cut is not None:
            keep = torch.tensor(tensor_cut.keep, device=tensor.device)
            tensor = tensor.index_select(tensor_cut.axis, keep)
        state[name] = tensor.clone()
    slim.load_state_dict(state, strict=True, assign=True)
    # Buffers that are not saved (RoPE frequencies, position ids) are not in the state dict.
    buffers = dict(dense.named_buffers())
    for name, _ in list(slim.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        slim.get_submodule(owner)._buffers[leaf] = buffers[name].clone()


def set_out(owner: nn.Module, names: tuple[str, ...], width: int) -> None:
    """Replace these layers of ``owner`` by ones with ``width`` outputs."""
    for name in names:
        old = getattr(owner, name)
        if old.out_features != width:
            setattr(owner, name, _linear(old, old.in_features, width))


def set_in(owner: nn.Module, name: str, width: int) -> None:
    """Replace a layer of ``owner`` by one with ``width`` inputs."""
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
