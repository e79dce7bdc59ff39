"""Build the ONNX graph of a LLaVA vision encoder: tower, selection of image tokens, projector."""

import onnx_ir as ir

from comp.checkpoints.tower_shape import LAYER_SCALES
from export.artifact.llava_manifest import KEPT
from export.configs.llava import LlavaShape
from export.graph.attention import Heads, full_attention
from export.graph.builder import GraphBuilder, Target
from export.graph.connector import connect, join_patches
from export.graph.image_selection import TowerView, select_image_tokens
from export.graph.linear import activation, cast_to_float32, linear, vector
from export.graph.norm import add_layer_norm, layer_norm
from export.graph.patches import embed_patches
from export.weights.checkpoint import WeightSource

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
TOWER = "model.vision_tower"
ATTENTION_SCALE, FFN_SCALE = LAYER_SCALES


def vision_encoder(shape: LlavaShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``pixel_values [I, C, S, S] → image_features [I, T, d]``, both float32.

    Blocks after the last feature layer are left out. If image tokens are selected, there is also
    ``kept_image_tokens [I, dominant]``: which tokens of the tower the first ones are, ascending.
    """
    graph = GraphBuilder("vision_encoder", target)
    sizes, epsilon = shape.sizes, shape.layer_norm_eps
    tower = sizes.vision
    image = (tower.num_channels, tower.image_size, tower.image_size)
    pixels = graph.input("pixel_values", FLOAT, ("images", *image))
    with graph.scope("embeddings"):
        states = embed_patches(
            graph,
            weights,
            pixels,
            f"{TOWER}.embeddings",
            tower.patch_size,
            "position_embedding.weight",
            tower.patch_bias,
            tower.class_token,
        )
    residual = states
    if tower.pre_norm:
        residual = layer_norm(graph, weights, states, f"{TOWER}.pre_layrnorm", epsilon)
    hidden = {0: residual}
    last = max(shape.feature_layers)
    normed, view = residual, None
    for number in range(last):
        name = f"{TOWER}.encoder.layers.{number}"
        with graph.scope(f"layers.{number}"):
            if number == 0:
                normed = layer_norm(graph, weights, residual, f"{name}.layer_norm1", epsilon)
            mixed, view = _tower_attention(graph, shape, weights, normed, name, number)
            normed, residual = add_layer_norm(
                graph, weights, mixed, residual, f"{name}.layer_norm2", epsilon
            )
            wide = linear(graph, weights, normed, f"{name}.mlp.fc1", bias=True)
            wide = activation(graph, wide, shape.vision_act)
            narrow = linear(graph, weights, wide, f"{name}.mlp.fc2", bias=True)
            if tower.layer_scale:
                narrow = graph.op("Mul", narrow, vector(graph, weights, f"{name}.{FFN_SCALE}"))
            if number + 1 < last:
                following = f"{TOWER}.encoder.layers.{number + 1}.layer_norm1"
                normed, residual = add_layer_norm(
                    graph, weights, narrow, residual, following, epsilon
                )
            else:
                residual = graph.op("Add", residual, narrow)
            hidden[number + 1] = residual
    chosen = [hidden[layer] for layer in shape.feature_layers]
    if tower.final_norm:
        chosen = [
            layer_norm(graph, weights, each, f"{TOWER}.post_layernorm", epsilon) for each in chosen
        ]
    states = _image_tokens(graph, shape, chosen, view)
    with graph.scope("projector"):
        states = join_patches(graph, states, tower.num_patches, sizes.connector)
        features = connect(graph, weights, states, sizes.connector, shape.projector_act)
    graph.output(
        "image_features",
        cast_to_float32(graph, features),
        FLOAT,
        ("images", sizes.image_tokens, sizes.text.hidden_size),
    )
    return graph


def _tower_attention(
    graph: GraphBuilder,
    shape: LlavaShape,
    weights: WeightSource,
    normed: ir.Value,
    name: str,
    number: int,
) -> tuple[ir.Value, TowerView]:
    """The output of a block's attention ``[I, N, D]``, and the attention of [CLS]."""
    tower = shape.sizes.vision
    count = tower.blocks[number].heads
    heads = Heads(count, count, tower.head_dim)
    query, key, value = (
        linear(graph, weights, normed, f"{name}.self_attn.{kind}_proj", bias=tower.qkv_bias)
        for kind in "qkv"
    )
    mixed = full_attention(graph, query, key, value, heads)
    added = linear(graph, weights, mixed, f"{name}.self_attn.out_proj", bias=True)
    if tower.layer_scale:
        added = graph.op("Mul", added, vector(graph, weights, f"{name}.{ATTENTION_SCALE}"))
    return added, TowerView(query, key, heads, tower.class_token)


def _image_tokens(
    graph: GraphBuilder, shape: LlavaShape, chosen: list[ir.Value], view: TowerView | None
) -> ir.Value:
    """Join the feature layers ``[I, T, F·D]`` and select image tokens."""
    sizes, selection = shape.sizes, shape.sizes.image_selection
    if selection is not None and view is not None:
        joined = chosen[0] if len(chosen) == 1 else graph.op("Concat", *chosen, axis=-1)
        with graph.scope("selection"):
            left = select_image_tokens(graph, joined, view, selection, sizes.keeps_class_token)
        graph.output(KEPT, left.dominant, INT64, ("images", selection.dominant))
        return left.states
    if sizes.vision.class_token and not sizes.keeps_class_token:
        bounds = [graph.constant([n]) for n in (1, 2**31 - 1, 1)]
        chosen = [graph.op("Slice", states, *bounds) for states in chosen]
    return chosen[0] if len(chosen) == 1 else graph.op("Concat", *chosen, axis=-1)
