"""Map heads and channels to rows and columns of tensors.

Names are those of ``transformers`` 5 without the leading ``model.``. The module needs no torch, so that
checkpoints can be cut tensor by tensor from their files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comp.plan import BlockPlan, Part, PruningPlan

Patterns = Mapping[
    Part, re.Pattern[str]
]  # of tensor names: groups are the block and the name within
LLAVA: Patterns = {
    "language": re.compile(r"(?:^|\.)language_model\.(?:model\.)?layers\.(\d+)\.(.+)$"),
    "vision": re.compile(r"(?:^|\.)vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.(.+)$"),
}
CLIP: Patterns = {
    "language": re.compile(r"^text_model\.encoder\.layers\.(\d+)\.(.+)$"),
    "vision": re.compile(r"^vision_model\.encoder\.layers\.(\d+)\.(.+)$"),
}


@dataclass(frozen=True)
class Cut:
    """Indices to keep along an axis: 0 for rows (and biases), 1 for columns."""

    axis: int
    keep: tuple[int, ...]


def cut_of(
    name: str, plan: PruningPlan, head_dim: Mapping[str, int], patterns: Patterns = LLAVA
) -> Cut | None:
    """Return the cut of a tensor, in either key layout; ``None`` if it stays whole.

    Args:
        name: the tensor's name in the checkpoint.
        plan: the plan.
        head_dim: head size of each part, ``{"language": ..., "vision": ...}``.
        patterns: patterns of the family's tensor names.
    """
    for part, pattern in patterns.items():
        match = pattern.search(name)
        if match is None:
            continue
        blocks = {block.index: block for block in plan.blocks if block.part == part}
        block = blocks.get(int(match[1]))
        return None if block is None else _block_cut(match[2], block, head_dim[part])
    return None


def _block_cut(name: str, block: BlockPlan, head_dim: int) -> Cut | None:
    module, _, kind = name.rpartition(".")
    queries = spread(block.kept_heads, head_dim)
    groups = spread(block.kept_key_value_heads, head_dim)
    owners = {
        "self_attn.q_proj": (0, queries),
        "self_attn.k_proj": (0, groups),
        "self_attn.v_proj": (0, groups),
        "self_attn.o_proj": (1, queries),
        "self_attn.out_proj": (1, queries),
        "mlp.gate_proj": (0, block.kept_channels),
        "mlp.up_proj": (0, block.kept_channels),
        "mlp.down_proj": (1, block.kept_channels),
        "mlp.fc1": (0, block.kept_channels),
        "mlp.fc2": (1, block.kept_channels),
    }
    if module not in owners:
        return None
    axis, keep = owners[module]
    if kind == "bias":
        return Cut(0, tuple(keep)) if axis == 0 else None
    return Cut(axis, tuple(keep))


def spread(heads: Sequence[int], head_dim: int) -> tuple[int, ...]:
    """Return the rows of these heads."""
    return tuple(head * head_dim + i for head in heads for i in range(head_dim))
