"""What the configurations of CLIP and BLIP have in common for their graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.encoder_shapes import BlockSize
from comp.errors import CompExportError

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_pytorch_tanh", "silu", "relu")


@dataclass(frozen=True)
class TowerSettings:
    """Activation and epsilon of one tower."""

    act: str
    layer_norm_eps: float


def tower_settings(
    config: Mapping[str, Any], part: str, where: str, act: str, epsilon: float
) -> TowerSettings:
    """Those of ``config[part]``; ``act`` and ``epsilon`` are what transformers has for left-out ones.

    Raises:
        CompExportError: an activation that the graphs do not have.
    """
    values = config.get(part) or {}
    found = values.get("hidden_act") or act
    if found not in ACTIVATIONS:
        raise CompExportError(
            f"{where}: {part}.hidden_act is {found!r}: supported are {', '.join(ACTIVATIONS)}"
        )
    return TowerSettings(found, values.get("layer_norm_eps") or epsilon)


def recorded_sizes(pruning: Mapping[str, Any], part: str) -> list[tuple[int, int]]:
    """Heads and channels of each block as a slim config records them; empty where a part is whole."""
    sizes = pruning.get(part)
    if not sizes:
        return []
    return list(zip(sizes["num_attention_heads"], sizes["intermediate_size"], strict=True))


def cut_blocks(
    whole: tuple[BlockSize, ...], recorded: Sequence[tuple[int, int]]
) -> tuple[BlockSize, ...]:
    """Blocks of other heads and channels; nothing recorded leaves them whole.

    Raises:
        CompExportError: sizes of another number of blocks.
    """
    if not recorded:
        return whole
    if len(recorded) != len(whole):
        raise CompExportError(
            f"pruning records {len(recorded)} blocks of a part that has {len(whole)}: not a whole "
            "configuration; prune the model again"
        )
    return tuple(
        replace(block, heads=heads, channels=channels)
        for block, (heads, channels) in zip(whole, recorded, strict=True)
    )
