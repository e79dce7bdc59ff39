"""Count the multiply-accumulates of a Transformer block, for all families.

A multiply-accumulate counts 1, as in fvcore. Not counted: biases, softmax, activations, rotary embedding and
embedding lookups. An affine LayerNorm counts 5 per element, an RMSNorm nothing, so that a Llama block has the
published ``4nd² + 2n²d + 3ndm``. Attention counts the full n² of a block, causal or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from comp.checkpoints.shapes import BlockSize, Stack, TowerShape

Tokens = Sequence[tuple[int, int]]  # of each block: tokens in its attention, tokens in its FFN
LAYER_NORM = 5  # per element


@dataclass(frozen=True)
class Memory:
    """Size of the memory of cross-attention: tokens, their width, and the number of different inputs."""

    tokens: int
    hidden_size: int
    inputs: int = 1


def block_macs(
    stack: Stack, block: BlockSize, tokens: int, left: int, memory: Memory | None = None
) -> int:
    """Multiply-accumulates of a block on ``tokens``, of which ``left`` remain after its attention.

    With h heads of size d_h and g query heads for each: ``2nD(1 + g)hd_h + 2n²ghd_h`` for attention, two
    matrices ``DI`` of the FFN (three if gated), and two norms.

    Keys and values of the memory are not included, as several texts may share them.
    """
    hidden, key = stack.hidden_size, block.heads * stack.head_dim
    query = key * stack.group_size
    total = 2 * tokens * hidden * (query + key) + 2 * tokens * tokens * query
    total += (3 if stack.gated else 2) * left * hidden * block.channels
    total += norm_macs(stack, tokens + left)
    if memory is None or not block.cross_heads:
        return total
    for heads in block.cross_heads:
        cross = heads * stack.head_dim
        total += 2 * left * hidden * cross + 2 * left * memory.tokens * cross
    merge = 2 * left * hidden * hidden if block.merges else 0
    return total + merge + norm_macs(stack, left)


def block_weights(stack: Stack, block: BlockSize) -> int:
    """Numbers in the matrices of a block's self-attention and FFN."""
    key = block.heads * stack.head_dim
    width = 2 * key * (1 + stack.group_size) + (3 if stack.gated else 2) * block.channels
    return stack.hidden_size * width


def norm_macs(stack: Stack, tokens: int) -> int:
    """Multiply-accumulates of a norm on ``tokens``."""
    return 0 if stack.rms_norm else LAYER_NORM * tokens * stack.hidden_size


def tower_macs(shape: TowerShape, tokens: Tokens | None = None) -> int:
    """Multiply-accumulates of one image: patches ``NPD``, the blocks, and one norm over the tokens left.

    The norm is counted once if there is one before the blocks, after them, or both.
    """
    seen = tokens or [(shape.tokens, shape.tokens)] * len(shape.blocks)
    blocks = sum(
        block_macs(shape, block, *counts) for block, counts in zip(shape.blocks, seen, strict=True)
    )
    left = seen[-1][1] if seen else shape.tokens
    patches = shape.num_patches * shape.patch_dim * shape.hidden_size
    has_norm = shape.pre_norm or shape.final_norm
    return patches + blocks + (norm_macs(shape, left) if has_norm else 0)
