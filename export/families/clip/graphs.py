"""Build the graphs of a CLIP: one for images and one for texts, both giving unit-length embeddings."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from comp.checkpoints.shapes import TextShape, TowerShape
from comp.errors import CompExportError
from comp.plan import Part
from export.configs.clip import ClipShape
from export.graph.builder import GraphBuilder, Target
from export.graph.linear import axis_size, vector
from export.graph.norm import embed, layer_norm
from export.graph.patches import embed_patches
from export.graph.pre_norm_tower import PreNormTower
from export.weights.checkpoint import WeightSource

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
VISION_GRAPH, TEXT_GRAPH = "vision_model.onnx", "text_model.onnx"


def build_clip_graphs(
    shape: ClipShape,
    weights: WeightSource,
    target: Target,
    directory: Path,
    written: Callable[[str], None] = lambda name: None,
) -> None:
    """Write both graphs and their external data into ``directory``.

    Raises:
        CompExportError: a tensor is missing.
    """
    for name, build in ((VISION_GRAPH, vision_model), (TEXT_GRAPH, text_model)):
        build(shape, weights, target).save(directory / name)
        written(name)


def vision_model(shape: ClipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``pixel_values [I, C, S, S] → image_embeds [I, P]``, both float32, of length 1.

    For each drop place ``kept.{m} [I, k]``: positions of the remaining tokens; [CLS] is 0.
    """
    graph = GraphBuilder("vision_model", target)
    side = shape.sizes.vision.image_size
    pixels = graph.input("pixel_values", FLOAT, ("images", 3, side, side))
    with graph.scope("embeddings"):
        states = embed_patches(
            graph,
            weights,
            pixels,
            "vision_model.embeddings",
            shape.sizes.vision.patch_size,
            "position_embedding.weight",
        )
    states = layer_norm(
        graph, weights, states, "vision_model.pre_layrnorm", shape.vision.layer_norm_eps
    )
    pooled = tower_of(graph, shape, weights, "vision").pooled(states)
    _embeds(graph, weights, pooled, "visual_projection", "image_embeds", shape.sizes.projection)
    return graph


def text_model(shape: ClipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L] int64 → text_embeds [T, P]`` float32, of length 1.

    Texts have one length, and each ends in the token that is pooled (``export.configs.text_end``). For each
    drop place ``kept.{m} [T, k]``.
    """
    graph = GraphBuilder("text_model", target)
    ids = graph.input("input_ids", INT64, ("texts", "length"))
    with graph.scope("embeddings"):
        words = graph.op(
            "Gather", vector(graph, weights, "text_model.embeddings.token_embedding.weight"), ids
        )
        places = vector(graph, weights, "text_model.embeddings.position_embedding.weight")
        length = axis_size(graph, ids, 1)
        begin, axis = graph.constant([0]), graph.constant([0])
        states = graph.op("Add", words, graph.op("Slice", places, begin, length, axis))
    pooled = tower_of(graph, shape, weights, "language").pooled(states)
    _embeds(graph, weights, pooled, "text_projection", "text_embeds", shape.sizes.projection)
    return graph


def tower_of(
    graph: GraphBuilder, shape: ClipShape, weights: WeightSource, part: Part
) -> PreNormTower:
    """Describe one of the towers; the first token of an image, or the last of a text, always stays."""
    causal = part == "language"
    model, final = (
        ("text_model", "final_layer_norm") if causal else ("vision_model", "post_layernorm")
    )
    sizes: TextShape | TowerShape = shape.sizes.text if causal else shape.sizes.vision
    return PreNormTower(
        graph=graph,
        weights=weights,
        name=f"{model}.encoder.layers",
        final=f"{model}.{final}",
        blocks=sizes.blocks,
        head_dim=sizes.head_dim,
        settings=shape.text if causal else shape.vision,
        drop=lambda layer: shape.drop(part, layer),
        causal=causal,
        part=part,
    )


def _embeds(
    graph: GraphBuilder,
    weights: WeightSource,
    pooled: ir.Value,
    projection: str,
    output: str,
    width: int,
) -> None:
    """See ``embed``; refuse a checkpoint whose projection has another width than its configuration."""
    has = weights.shape(f"{projection}.weight")[0]
    if has != width:
        raise CompExportError(
            f"{projection}.weight gives {has} numbers, and config.json says projection_dim {width}: "
            "take both files from the same checkpoint"
        )
    embed(graph, weights, pooled, projection, output, width)
