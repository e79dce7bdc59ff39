"""Image tokens and multiply-accumulates of a compressed LLaVA at other keep ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

from comp.checkpoints.shapes import BlockSize, DecoderShape
from comp.flops.block import block_macs
from comp.flops.llava import token_counts
from comp.plan import KEEP_UNIT, keep_count
from export.artifact.llava_manifest import LlavaManifest

LEAST = 1 / KEEP_UNIT


@dataclass(frozen=True)
class Keeping:
    """Tokens and computation that a factor on the keep ratios leaves.

    Attributes:
        places: number of decoder layers after which tokens are dropped, ascending.
        tokens: image tokens that stay at each place.
        of: image tokens that enter the decoder.
        macs: multiply-accumulates of one prefill of the manifest's workload; ``None`` if unknown.
        share: of the dense model's.
    """

    places: tuple[int, ...]
    tokens: tuple[int, ...]
    of: int
    macs: int | None
    share: float | None


def keeping(manifest: LlavaManifest, factor: float) -> Keeping:
    """Count tokens and multiply-accumulates for a factor on the keep ratios, as the graph applies it.

    Args:
        manifest: manifest of an artifact that drops tokens.
        factor: multiplies every keep ratio; the result is at most 1.
    """
    drops = manifest.decoder.drops
    ratios = {
        drop.after_layer: (
            scaled(drop.vision_keep_ratio, factor),
            scaled(drop.text_keep_ratio, factor),
        )
        for drop in drops
    }
    left, tokens = manifest.vision.image_tokens, []
    for drop in drops:
        left = keep_count(left, ratios[drop.after_layer][0])
        tokens.append(left)
    macs = _macs(manifest, ratios)
    dense = manifest.macs.dense if manifest.macs else None
    share = None if macs is None or not dense else macs / dense
    places = tuple(drop.after_layer for drop in drops)
    return Keeping(places, tuple(tokens), manifest.vision.image_tokens, macs, share)


def scaled(ratio: float, factor: float) -> float:
    """A keep ratio in whole thousandths times a factor, between a thousandth and 1."""
    thousandths = round(ratio * KEEP_UNIT)
    return min(max(round(factor * thousandths) / KEEP_UNIT, LEAST), 1.0)


def _macs(manifest: LlavaManifest, ratios: dict[int, tuple[float, float]]) -> int | None:
    """The total of the manifest, with the decoder's part at these keep ratios."""
    if manifest.macs is None or "language" not in manifest.macs.parts:
        return None
    own = {drop.after_layer: drop.shares for drop in manifest.decoder.drops}
    change = _language(manifest, ratios) - _language(manifest, own)
    return manifest.macs.artifact + change


def _language(manifest: LlavaManifest, ratios: dict[int, tuple[float, float]]) -> int:
    """Multiply-accumulates of the decoder blocks, with the ranking by the next layer."""
    assert manifest.macs is not None
    decoder, on = manifest.decoder, manifest.macs.workload
    # The tokens that enter the decoder: fewer than the tower's if it selects some.
    images = -(-on.image_tokens // manifest.vision.all_image_tokens)
    entering = images * manifest.vision.image_tokens
    counts = token_counts(decoder.num_layers, entering, on.text_tokens, ratios)
    tokens = [image + text for image, text in counts]
    total = 0
    sizes = zip(
        decoder.num_attention_heads,
        decoder.num_key_value_heads,
        decoder.intermediate_size,
        tokens,
        strict=True,
    )
    stacks: list[DecoderShape] = []
    for heads, key_value_heads, channels, count in sizes:
        block = BlockSize(key_value_heads, channels)
        stack = DecoderShape(
            hidden_size=decoder.hidden_size,
            head_dim=decoder.head_dim,
            blocks=(block,),
            group_size=heads // key_value_heads,
            vocab_size=decoder.vocab_size,
            positions=decoder.max_position_embeddings,
        )
        stacks.append(stack)
        total += block_macs(stack, block, count, count)
    return total + _ranking(manifest, stacks, tokens)


def _ranking(manifest: LlavaManifest, stacks: Sequence[DecoderShape], tokens: Sequence[int]) -> int:
    """As ``comp.flops.llava.ranking_macs``: keys of dropped tokens, and a query."""
    total = 0
    for drop in manifest.decoder.drops:
        if drop.ranking == "next_layer":
            after = drop.after_layer
            stack = stacks[after]
            gone = tokens[after - 1] - tokens[after]
            width = stack.blocks[0].heads * stack.head_dim
            total += (gone + stack.group_size) * stack.hidden_size * width
    return total
