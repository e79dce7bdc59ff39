"""Sizes of Transformer blocks and of stacks of them: the vocabulary of all families' shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from comp.errors import CompExportError
from comp.plan import BlockPlan, Part

T = TypeVar("T", bound="Stack")
CHANNELS = 3  # of a picture


def cross_key(block: int, branch: int, branches: int) -> tuple[Part, int]:
    """Return the key of a branch of a text block's cross-attention among the cross blocks."""
    return "cross", block * branches + branch


@dataclass(frozen=True)
class BlockSize:
    """Sizes of one Transformer block.

    Attributes:
        heads, channels: of self-attention and FFN; of a Llama, KV heads.
        cross_heads: heads of each branch of cross-attention; empty without cross-attention.
        merges: whether two branches are joined by a linear layer.
    """

    heads: int
    channels: int
    cross_heads: tuple[int, ...] = ()
    merges: bool = False


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Transformer blocks of one width.

    Attributes:
        group_size: query heads for each of a block's heads.
        gated: whether the FFN has a third matrix.
        rms_norm: whether its norms are RMSNorms; LayerNorms otherwise.
    """

    hidden_size: int
    head_dim: int
    blocks: tuple[BlockSize, ...]
    group_size: int = 1
    gated: ClassVar[bool] = False
    rms_norm: ClassVar[bool] = False

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of each block."""
        return tuple(block.heads for block in self.blocks)

    @property
    def channels(self) -> tuple[int, ...]:
        """FFN channels of each block."""
        return tuple(block.channels for block in self.blocks)

    def first(self: T, count: int) -> T:
        """Return the stack with only its first blocks."""
        return replace(self, blocks=self.blocks[:count])

    def left(
        self: T,
        part: Part,
        heads: Mapping[tuple[Part, int], int],
        channels: Mapping[tuple[Part, int], int],
        first: int = 0,
    ) -> T:
        """Return the stack with these heads and channels; blocks without an entry stay whole.

        Args:
            part: its part of the model.
            heads, channels: by part and number of the block (``cross_key`` for cross-attention).
            first: number of its first block.
        """
        blocks = tuple(
            replace(
                block,
                heads=heads.get((part, number), block.heads),
                channels=channels.get((part, number), block.channels),
                cross_heads=tuple(
                    heads.get(cross_key(number, branch, len(block.cross_heads)), whole)
                    for branch, whole in enumerate(block.cross_heads)
                ),
            )
            for number, block in enumerate(self.blocks, start=first)
        )
        return replace(self, blocks=blocks)


@dataclass(frozen=True, kw_only=True)
class TowerShape(Stack):
    """Sizes of a vision transformer; images are squares of ``image_size`` pixels.

    Attributes:
        class_token: whether [CLS] comes before the patches.
        patch_bias: whether the embedding of patches has a bias.
        pre_norm: whether a norm precedes the blocks.
        final_norm: whether the features are normalised after the last block.
        layer_scale: whether the outputs of attention and FFN are multiplied by a vector each.
        qkv_bias: whether queries, keys and values have biases.
        pooling_channels: FFN width of a pooling head that the checkpoint has and nothing runs; 0 without one.
    """

    image_size: int
    patch_size: int
    num_channels: int = CHANNELS
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True
    final_norm: bool = False
    layer_scale: bool = False
    qkv_bias: bool = True
    pooling_channels: int = 0

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Patches, and the class token if there is one."""
        return self.num_patches + self.class_token

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch."""
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class TextShape(Stack):
    """Sizes of a text encoder or decoder; ``positions`` is the longest text in tokens."""

    vocab_size: int
    positions: int


@dataclass(frozen=True, kw_only=True)
class DecoderShape(Stack):
    """Sizes of a decoder in the form of a Llama; ``heads`` of its blocks are KV heads.

    Attributes:
        positions: most tokens of a prompt with its answer.
        qkv_bias, output_bias, mlp_bias: which linear layers have biases.
        qk_norm: whether each head's queries and keys are normalised before the rotary embedding.
    """

    vocab_size: int
    positions: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gated: ClassVar[bool] = True
    rms_norm: ClassVar[bool] = True


def cut_blocks(
    whole: tuple[BlockSize, ...], recorded: Sequence[tuple[int, int]]
) -> tuple[BlockSize, ...]:
    """Return blocks with the recorded heads and channels; without records they stay whole.

    Raises:
        CompExportError: the numbers of blocks differ.
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


def planned_blocks(
    whole: tuple[BlockSize, ...], plans: tuple[BlockPlan, ...], group_size: int = 1
) -> tuple[BlockSize, ...]:
    """Return the blocks of a part after a plan; blocks that it does not name stay whole.

    Raises:
        CompExportError: the plan names a block that the model does not have.
    """
    left = list(whole)
    for plan in plans:
        heads, channels = plan.num_key_value_heads, plan.intermediate_size
        block = whole[plan.index] if plan.index < len(whole) else None
        sizes = None if block is None else (block.heads, group_size, block.channels)
        if block is None or sizes != (heads, plan.group_size, channels):
            raise CompExportError(
                f"the plan has {plan.part} block {plan.index} of {heads} heads and {channels} channels, "
                "which the model has not: pass the --model that the plan was made for"
            )
        left[plan.index] = replace(
            block, heads=len(plan.kept_key_value_heads), channels=len(plan.kept_channels)
        )
    return tuple(left)
