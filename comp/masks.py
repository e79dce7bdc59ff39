"""Structure masks: which KV heads and FFN channels of each block are (still) there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comp.plan import BlockPlan, Part

BlockKey = tuple[Part, int]


@dataclass(frozen=True)
class BlockShape:
    """Dense sizes of one Transformer block."""

    part: Part
    index: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    gated: bool

    @property
    def key(self) -> BlockKey:
        return self.part, self.index

    @property
    def group_size(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads


@dataclass(frozen=True)
class Masks:
    """Soft masks in [0, 1]: ``heads[key] [num_key_value_heads]``, ``channels[key] [intermediate]``.

    A block without an entry is whole. Masks multiply the inputs of the output projections (Eq. 2),
    and heads also multiply the attention that scores tokens (Eq. 7).
    """

    heads: dict[BlockKey, Tensor]
    channels: dict[BlockKey, Tensor]

    @classmethod
    def ones(cls, blocks: Sequence[BlockShape]) -> "Masks":
        return cls(
            {block.key: torch.ones(block.num_key_value_heads) for block in blocks},
            {block.key: torch.ones(block.intermediate_size) for block in blocks},
        )

    @classmethod
    def from_plan(cls, blocks: Sequence[BlockPlan]) -> "Masks":
        """The binary masks of a plan."""
        heads, channels = {}, {}
        for block in blocks:
            head = torch.zeros(block.num_key_value_heads)
            head[list(block.kept_key_value_heads)] = 1
            channel = torch.zeros(block.intermediate_size)
            channel[list(block.kept_channels)] = 1
            heads[block.part, block.index] = head
            channels[block.part, block.index] = channel
        return cls(heads, channels)

    def towards(self, target: "Masks", progress: float) -> "Masks":
        """Masks on their way from these to ``target`` (progress 1): the soft decay of a stage."""

        def blend(
            old: dict[BlockKey, Tensor], new: dict[BlockKey, Tensor]
        ) -> dict[BlockKey, Tensor]:
            return {key: torch.lerp(old[key], new[key], progress) for key in old}

        return Masks(blend(self.heads, target.heads), blend(self.channels, target.channels))

    def counts(self) -> "StructureCounts":
        return StructureCounts(
            {key: int((mask > 0.5).sum()) for key, mask in self.heads.items()},
            {key: int((mask > 0.5).sum()) for key, mask in self.channels.items()},
        )


@dataclass(frozen=True)
class StructureCounts:
    """How many KV heads and channels each block has: all a FLOPs counter needs."""

    heads: dict[BlockKey, int]
    channels: dict[BlockKey, int]


UNCUT = StructureCounts({}, {})  # every block is whole
