"""Count the exact multiply-accumulates and parameters of a LLaVA from its sizes.

The rules are those of ``comp.flops.block``. Also not counted: the scoring of tokens at a drop place (one more
row of an attention matrix, or the similarity to a few pivots). Counted: the keys of dropped tokens where the
next block's q and k rank tokens, and the matrix products that merge image tokens after the tower.

The FFN of a block before a drop place counts all of the block's tokens, as in published figures. A prompt is
counted up to its first new token: the LM head sees one token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.shapes import BlockSize, DecoderShape, TowerShape
from comp.flops.block import block_macs, block_weights, tower_macs
from comp.plan import DropPlan, Drops, Part, PruningPlan, Workload, keep_count

KeepRatios = Mapping[int, tuple[float, float]]  # after_layer -> (vision, text)


@dataclass(frozen=True)
class PartCost:
    """Multiply-accumulates for one prompt, and parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class FlopsReport:
    """Cost of a prompt, by part: ``vision``, ``projector``, ``language`` and ``lm_head``.

    ``params`` counts the whole checkpoint, including tower blocks that never run; ``macs`` counts only
    what runs.
    """

    macs: int
    params: int
    parts: dict[str, PartCost]
    tokens_per_layer: tuple[int, ...]


def token_counts(
    num_layers: int, image_tokens: int, text_tokens: int, ratios: KeepRatios
) -> list[tuple[int, int]]:
    """Image and text tokens in each block; a place keeps ``ceil(ratio · n)`` of n tokens of a kind."""
    counts = []
    for layer in range(num_layers):
        if layer in ratios:
            vision, text = ratios[layer]
            image_tokens = keep_count(image_tokens, vision)
            text_tokens = keep_count(text_tokens, text)
        counts.append((image_tokens, text_tokens))
    return counts


def keep_ratios(drops: Iterable[DropPlan]) -> KeepRatios:
    """The keep ratios of a plan's drops, by place."""
    return {drop.after_layer: drop.shares for drop in drops}


def ranking_macs(shape: ModelShape, tokens: Sequence[int]) -> int:
    """Additional multiply-accumulates of ``next_layer``: keys of the dropped tokens, and a query.

    The keys of tokens that stay are part of the next block.

    Args:
        shape: sizes of the slim model, with its drops.
        tokens: number of tokens in each block.
    """
    total = 0
    for drop in shape.drops:
        if drop.ranking != "next_layer":
            continue
        after, text = drop.after_layer, shape.text
        gone = tokens[after - 1] - tokens[after]
        width = text.blocks[after].heads * text.head_dim
        total += (gone + text.group_size) * text.hidden_size * width
    return total


def llava_macs(
    shape: ModelShape,
    image_tokens: int,
    text_tokens: int,
    plan: PruningPlan | None = None,
    whole_tower: bool = False,
) -> FlopsReport:
    """Multiply-accumulates and parameters for one prompt.

    Args:
        shape: sizes of the dense model, or without a plan also those of a slim one.
        image_tokens: image tokens of the tower; a part of an image counts as a whole one.
        plan: a plan to apply to ``shape``.
        whole_tower: also count tower blocks after the feature layer, as published figures do.

    Raises:
        CompExportError: the plan was made for another model.
    """
    slim = shape if plan is None else shape.with_plan(plan)
    tower = slim.vision if whole_tower else slim.used_tower
    tokens = _tokens(slim, image_tokens, text_tokens, keep_ratios(slim.drops))
    macs = _macs_by_part(slim, tower, image_count(slim, image_tokens), tokens)
    macs["language"] += ranking_macs(slim, tokens)
    parameters = llava_params(slim)
    parts = {name: PartCost(macs[name], parameters[name]) for name in macs}
    return FlopsReport(sum(macs.values()), sum(parameters.values()), parts, tuple(tokens))


def llava_macs_of_counts(
    shape: ModelShape,
    heads: Mapping[tuple[Part, int], int],
    channels: Mapping[tuple[Part, int], int],
    ratios: KeepRatios,
    on: Workload,
) -> int:
    """Total of ``llava_macs`` for counts of KV heads and channels by (part, block).

    Blocks without an entry are as in ``shape``.
    """
    return _macs_of_tokens(
        _left(shape, heads, channels), on, _tokens(shape, on.image_tokens, on.text_tokens, ratios)
    )


def llava_macs_of_drops(
    shape: ModelShape,
    heads: Mapping[tuple[Part, int], int],
    channels: Mapping[tuple[Part, int], int],
    drops: Drops,
    on: Workload,
) -> int:
    """As ``llava_macs_of_counts``, including the ranking of these drops."""
    dropping = replace(_left(shape, heads, channels), drops=drops)
    tokens = _tokens(shape, on.image_tokens, on.text_tokens, keep_ratios(drops))
    return _macs_of_tokens(dropping, on, tokens) + ranking_macs(dropping, tokens)


def image_count(shape: ModelShape, image_tokens: int) -> int:
    """Number of images with ``image_tokens`` tokens, rounded up."""
    return -(-image_tokens // shape.all_image_tokens)


def selection_macs(shape: ModelShape) -> int:
    """Multiply-accumulates of selecting and merging one image's tokens: cosines to targets, mixtures.

    The attention of [CLS] is computed anyway. Keys are compared as their mean over heads.
    """
    if shape.image_selection is None:
        return 0
    rest = shape.tower_tokens - shape.image_selection.dominant
    width = shape.vision.head_dim + shape.connector.in_features
    return rest * shape.image_selection.contextual * width


def llava_params(shape: ModelShape) -> dict[str, int]:
    """Parameters of each part of the checkpoint; a tied LM head counts 0."""
    text, tower = shape.text, shape.vision
    d = text.hidden_size
    layers = sum(_decoder_block_params(text, block) for block in text.blocks)
    blocks = sum(_tower_block_params(tower, block) for block in tower.blocks)
    return {
        "vision": _tower_ends_params(tower) + blocks,
        "projector": shape.connector.params,
        "language": text.vocab_size * d + layers + d,
        "lm_head": 0 if shape.tie_word_embeddings else text.vocab_size * d,
    }


def _left(
    shape: ModelShape,
    heads: Mapping[tuple[Part, int], int],
    channels: Mapping[tuple[Part, int], int],
) -> ModelShape:
    """Sizes of the model with these KV heads and channels."""
    vision = shape.vision.left("vision", heads, channels)
    return replace(shape, vision=vision, text=shape.text.left("language", heads, channels))


def _tokens(
    shape: ModelShape, image_tokens: int, text_tokens: int, ratios: KeepRatios
) -> list[int]:
    """Tokens in each language block."""
    selection = shape.image_selection
    arriving = image_tokens if selection is None else selection.arriving(image_tokens)
    counts = token_counts(shape.num_layers, arriving, text_tokens, ratios)
    return [image + text for image, text in counts]


def _macs_of_tokens(shape: ModelShape, on: Workload, tokens: Sequence[int]) -> int:
    images = image_count(shape, on.image_tokens)
    return sum(_macs_by_part(shape, shape.used_tower, images, tokens).values())


def _macs_by_part(
    shape: ModelShape, tower: TowerShape, images: int, tokens: Sequence[int]
) -> dict[str, int]:
    """Multiply-accumulates by part, without ranking, with these tokens in each language block."""
    text = shape.text
    language = sum(
        block_macs(text, block, count, count)
        for block, count in zip(text.blocks, tokens, strict=True)
    )
    return {
        "vision": images * (tower_macs(tower) + selection_macs(shape)),
        "projector": images * shape.image_tokens * shape.connector.macs,
        "language": language,
        "lm_head": text.vocab_size * text.hidden_size,
    }


def _decoder_block_params(text: DecoderShape, block: BlockSize) -> int:
    d, key, channels = text.hidden_size, block.heads * text.head_dim, block.channels
    query = key * text.group_size
    attention_bias = (query + 2 * key) * text.qkv_bias + d * text.output_bias
    return (
        block_weights(text, block)
        + 2 * d
        + attention_bias
        + 2 * text.head_dim * text.qk_norm
        + (2 * channels + d if text.mlp_bias else 0)
    )


def _tower_ends_params(tower: TowerShape) -> int:
    """Parameters of a tower besides its blocks: embeddings, outer norms, pooling head."""
    width = tower.hidden_size
    embedded = tower.patch_dim * width + tower.tokens * width
    embedded += width * (tower.class_token + tower.patch_bias)
    # An InternViT ends without a norm; others have one, whether it runs or not.
    norms = 2 * width * (tower.pre_norm + (not tower.layer_scale))
    if not tower.pooling_channels:
        return embedded + norms
    probe_and_attention = width + 4 * (width + 1) * width
    ffn = 2 * width * tower.pooling_channels + tower.pooling_channels + width
    return embedded + norms + probe_and_attention + 2 * width + ffn


def _tower_block_params(tower: TowerShape, block: BlockSize) -> int:
    hidden, width, channels = tower.hidden_size, block.heads * tower.head_dim, block.channels
    biases = 3 * width * tower.qkv_bias + hidden + channels + hidden
    scales = 2 * hidden * tower.layer_scale
    return block_weights(tower, block) + biases + 4 * hidden + scales
