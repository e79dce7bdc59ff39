"""Count the exact multiply-accumulates and parameters of a LLaVA from its sizes.

A multiply-accumulate counts 1. Not counted: biases, softmax, activations, rotary embedding, embedding
lookups, and the scoring of tokens at a drop place (one more row of an attention matrix, or the similarity
to a few pivots). Counted: the keys of dropped tokens where the next block's q and k rank tokens, and the
matrix products that merge image tokens after the tower.

An affine LayerNorm of the vision tower counts 5 per element, as in fvcore. The language model's RMSNorm
counts nothing, so that a block has the published ``4nd² + 2n²d + 3ndm``. Attention counts the full n² of a
block, causal or not. A prompt is counted up to its first new token: the LM head sees one token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from comp.checkpoints.llava_shape import ModelShape
from comp.plan import DropPlan, Drops, Part, PruningPlan, Workload, keep_count

KeepRatios = Mapping[int, tuple[float, float]]  # after_layer -> (vision, text)

LAYER_NORM = 5  # per element


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


def vision_block_macs(tokens: int, hidden: int, heads_width: int, channels: int) -> int:
    """MACs of a tower block: ``4NDw + 2N²w + 2NDI`` and two LayerNorms; ``w`` is heads × head size."""
    attention = 4 * tokens * hidden * heads_width + 2 * tokens * tokens * heads_width
    return attention + 2 * tokens * hidden * channels + 2 * LAYER_NORM * tokens * hidden


def vision_tower_macs(
    tokens: int,
    hidden: int,
    patch_dim: int,
    heads_widths: Sequence[int],
    channels: Sequence[int],
) -> int:
    """Multiply-accumulates of the tower on one image: ``(N−1)PD``, its blocks, and one more LayerNorm.

    Args:
        tokens: N, patches and the class token.
        patch_dim: P, numbers in a patch (3·patch²).
        heads_widths, channels: of each block that runs.
    """
    blocks = sum(
        vision_block_macs(tokens, hidden, width, size)
        for width, size in zip(heads_widths, channels, strict=True)
    )
    return (tokens - 1) * patch_dim * hidden + blocks + LAYER_NORM * tokens * hidden


def llama_block_macs(
    tokens: int, hidden: int, heads: int, kv_heads: int, head_dim: int, channels: int
) -> int:
    """MACs of a Llama block on ``tokens``: q, k, v, o, the attention itself, and the gated FFN (3ndm)."""
    projections = 2 * tokens * hidden * (heads + kv_heads) * head_dim
    attention = 2 * tokens * tokens * heads * head_dim
    return projections + attention + 3 * tokens * hidden * channels


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


def language_block_macs(
    shape: ModelShape, tokens: int, kv_groups_kept: int, channels_kept: int
) -> int:
    """Multiply-accumulates of a language block with these KV groups and channels left."""
    heads = kv_groups_kept * shape.group_size
    return llama_block_macs(
        tokens, shape.hidden_size, heads, kv_groups_kept, shape.head_dim, channels_kept
    )


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
        after, width = drop.after_layer, shape.kv_heads[drop.after_layer] * shape.head_dim
        gone = tokens[after - 1] - tokens[after]
        total += (gone + shape.group_size) * shape.hidden_size * width
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
        shape: sizes of the dense model; without a plan also of a slim one.
        image_tokens: image tokens of the tower; a part of an image counts as a whole one.
        plan: applied to ``shape``.
        whole_tower: also count tower blocks after the feature layer, as published figures do.

    Raises:
        CompExportError: the plan was made for another model.
    """
    slim = shape if plan is None else shape.with_plan(plan)
    ratios = keep_ratios(slim.drops)
    arriving = _arriving(slim, image_tokens)
    counts = token_counts(slim.num_layers, arriving, text_tokens, ratios)
    tokens = [image + text for image, text in counts]
    language = sum(
        language_block_macs(slim, count, groups, channels)
        for count, groups, channels in zip(tokens, slim.kv_heads, slim.channels, strict=True)
    )
    language += ranking_macs(slim, tokens)
    run = len(slim.vision_heads) if whole_tower else slim.vision_used_layers
    vision = _tower(slim, slim.vision_heads[:run], slim.vision_channels[:run])
    images = image_count(slim, image_tokens)
    parameters = llava_params(slim)
    macs = {
        "vision": images * (vision + selection_macs(slim)),
        "projector": images * _projector_macs(slim),
        "language": language,
        "lm_head": slim.vocab_size * slim.hidden_size,
    }
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

    Blocks without an entry are as in ``shape``. A fast version for the pruning loop.
    """
    arriving = _arriving(shape, on.image_tokens)
    tokens = token_counts(shape.num_layers, arriving, on.text_tokens, ratios)
    total = shape.vocab_size * shape.hidden_size
    for layer, (image, text) in enumerate(tokens):
        total += language_block_macs(
            shape,
            image + text,
            heads.get(("language", layer), shape.kv_heads[layer]),
            channels.get(("language", layer), shape.channels[layer]),
        )
    images = image_count(shape, on.image_tokens)
    if images:
        used = range(shape.vision_used_layers)
        tower = _tower(
            shape,
            [heads.get(("vision", layer), shape.vision_heads[layer]) for layer in used],
            [channels.get(("vision", layer), shape.vision_channels[layer]) for layer in used],
        )
        total += images * (tower + selection_macs(shape) + _projector_macs(shape))
    return total


def llava_macs_of_drops(
    shape: ModelShape,
    heads: Mapping[tuple[Part, int], int],
    channels: Mapping[tuple[Part, int], int],
    drops: Drops,
    on: Workload,
) -> int:
    """As ``llava_macs_of_counts``, including the ranking of these drops."""
    ratios = keep_ratios(drops)
    arriving = _arriving(shape, on.image_tokens)
    seen = token_counts(shape.num_layers, arriving, on.text_tokens, ratios)
    groups = tuple(
        heads.get(("language", layer), whole) for layer, whole in enumerate(shape.kv_heads)
    )
    dropping = replace(shape, drops=drops, kv_heads=groups)
    ranking = ranking_macs(dropping, [image + text for image, text in seen])
    return llava_macs_of_counts(shape, heads, channels, ratios, on) + ranking


def image_count(shape: ModelShape, image_tokens: int) -> int:
    """Number of images with ``image_tokens`` tokens, rounded up."""
    return -(-image_tokens // shape.tower_tokens)


def selection_macs(shape: ModelShape) -> int:
    """Multiply-accumulates of selecting and merging one image's tokens: cosines to targets, mixtures.

    The attention of [CLS] is computed anyway. Keys are compared as their mean over heads.
    """
    if shape.image_selection is None:
        return 0
    rest = shape.tower_tokens - shape.image_selection.dominant
    width = shape.vision_head_dim + shape.feature_layers * shape.vision_hidden_size
    return rest * shape.image_selection.contextual * width


def llava_params(shape: ModelShape) -> dict[str, int]:
    """Parameters of each part of the checkpoint; a tied LM head counts 0."""
    d, v = shape.hidden_size, shape.vision_hidden_size
    layers = sum(
        _llama_block_params(shape, groups, channels)
        for groups, channels in zip(shape.kv_heads, shape.channels, strict=True)
    )
    blocks = sum(
        _clip_block_params(v, heads * shape.vision_head_dim, channels)
        for heads, channels in zip(shape.vision_heads, shape.vision_channels, strict=True)
    )
    # class embedding, patches, positions, and the norms before and after the blocks
    embeddings = v + _patch_dim(shape) * v + (shape.num_patches + 1) * v
    features = shape.feature_layers * v
    return {
        "vision": embeddings + blocks + 4 * v,
        "projector": features * d + d * d + (2 * d if shape.projector_bias else 0),
        "language": shape.vocab_size * d + layers + d,
        "lm_head": 0 if shape.tie_word_embeddings else shape.vocab_size * d,
    }


def _arriving(shape: ModelShape, image_tokens: int) -> int:
    selection = shape.image_selection
    return image_tokens if selection is None else selection.arriving(image_tokens)


def _tower(shape: ModelShape, heads: Sequence[int], channels: Sequence[int]) -> int:
    widths = [count * shape.vision_head_dim for count in heads]
    tokens = shape.num_patches + 1
    return vision_tower_macs(tokens, shape.vision_hidden_size, _patch_dim(shape), widths, channels)


def _projector_macs(shape: ModelShape) -> int:
    d = shape.hidden_size
    return shape.image_tokens * (shape.feature_layers * shape.vision_hidden_size * d + d * d)


def _patch_dim(shape: ModelShape) -> int:
    return shape.num_channels * shape.patch_size**2


def _llama_block_params(shape: ModelShape, groups: int, channels: int) -> int:
    d, key = shape.hidden_size, groups * shape.head_dim
    query = key * shape.group_size
    weights = 2 * d * (query + key) + 3 * d * channels + 2 * d
    attention_bias = query + 2 * key + d if shape.attention_bias else 0
    return weights + attention_bias + (2 * channels + d if shape.mlp_bias else 0)


def _clip_block_params(hidden: int, width: int, channels: int) -> int:
    attention = 4 * hidden * width + 3 * width + hidden
    return attention + 2 * hidden * channels + channels + hidden + 4 * hidden
