"""Structure masks over the KV heads and FFN channels of each block, and block plans from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comp.errors import CompExportError
from comp.plan import BlockPlan, Part, Place, PruningPlan

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

    A block without an entry is whole. Masks multiply the inputs of the output projections (Eq. 2); those of
    heads also multiply the attention that scores tokens (Eq. 7).
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
        """Return the binary masks of a plan."""
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
        """Interpolate from these masks to ``target`` (progress 1): the soft decay of a stage."""

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
    """Numbers of KV heads and channels of each block, for counting FLOPs."""

    heads: dict[BlockKey, int]
    channels: dict[BlockKey, int]


UNCUT = StructureCounts({}, {})  # every block is whole


def check_plan_is_of(plan: PruningPlan, blocks: "Iterable[BlockShape]", model: str) -> None:
    """Refuse a plan whose blocks the dense model does not have.

    Raises:
        CompExportError: names the first such block.
    """
    have = {block.key: (block.num_attention_heads, block.intermediate_size) for block in blocks}
    for block in plan.blocks:
        key = block.part, block.index
        expected = block.num_attention_heads, block.intermediate_size
        if have.get(key) != expected:
            actual = (
                "is missing" if key not in have else "has {} heads, {} channels".format(*have[key])
            )
            raise CompExportError(
                f"{model} is not the dense model of the plan: its block {block.part} {block.index} {actual}, "
                f"the plan's has {expected[0]} and {expected[1]}; pass the model it was made for with --model"
            )


def block_plan(block: "BlockShape", groups: Iterable[int], channels: Iterable[int]) -> BlockPlan:
    """Return the plan of a block that keeps these KV heads and channels."""
    return BlockPlan(
        part=block.part,
        index=block.index,
        num_attention_heads=block.num_attention_heads,
        num_key_value_heads=block.num_key_value_heads,
        intermediate_size=block.intermediate_size,
        kept_key_value_heads=tuple(groups),
        kept_channels=tuple(channels),
    )


def whole_blocks(blocks: "Iterable[BlockShape]") -> tuple[BlockPlan, ...]:
    """Return plans that leave every block whole."""
    return tuple(
        block_plan(block, range(block.num_key_value_heads), range(block.intermediate_size))
        for block in blocks
    )


def completed(plan: PruningPlan, blocks: "Iterable[BlockShape]") -> PruningPlan:
    """Return the plan with all blocks of its model; those that it does not name are whole."""
    named = {(block.part, block.index): block for block in plan.blocks}
    whole = whole_blocks(blocks)
    filled = tuple(named.pop((block.part, block.index), block) for block in whole)
    return plan.model_copy(update={"blocks": (*filled, *named.values())})


def name_of(key: BlockKey | Place) -> str:
    """Return the name of a block or a drop place, as ``language.3``."""
    return f"{key[0]}.{key[1]}"
