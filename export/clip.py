"""The graphs of the CLIP family: one for images, one for texts, both giving normalised embeddings.

As in the LLaVA's decoder, tokens go right behind the attention that ranks them; in the last block only
the token that is pooled goes on, for nothing else of it is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from comp.encoder_shapes import BlockSize
from comp.plan import DropPlan, Part
from export.clip_config import ClipShape, TowerSettings
from export.graph.attention import Heads, full_attention, ranked_attention
from export.graph.builder import GraphBuilder, Target
from export.graph.linear import (
    activation,
    axis_size,
    cast_to_float32,
    cast_to_graph,
    linear,
    vector,
)
from export.graph.norm import add_layer_norm, layer_norm
from export.graph.token_gather import gather_rows, keep_strongest
from export.weights import WeightSource

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
VISION_GRAPH, TEXT_GRAPH = "vision_model.onnx", "text_model.onnx"
NORM_FLOOR = 1e-12  # torch's smallest norm when it normalises


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

    Per drop place ``kept.{m} [I, k]``: places of the tokens that stayed, [CLS] is 0.
    """
    graph = GraphBuilder("vision_model", target)
    tower = shape.sizes.vision
    pixels = graph.input("pixel_values", FLOAT, ("images", 3, shape.image_size, shape.image_size))
    with graph.scope("embeddings"):
        states = _patches(graph, shape, weights, pixels)
    states = layer_norm(
        graph, weights, states, "vision_model.pre_layrnorm", shape.vision.layer_norm_eps
    )
    run = _Tower(graph, shape, weights, "vision", tower.blocks, tower.head_dim, shape.vision)
    pooled = run.pooled(states, "vision_model.encoder.layers", "vision_model.post_layernorm")
    _embeds(graph, weights, pooled, "visual_projection", "image_embeds", shape.sizes.projection)
    return graph


def text_model(shape: ClipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L] int64 → text_embeds [T, P]`` float32, of length 1.

    Texts of one length, each ending in the end-of-text token: nothing is padded. Per drop place
    ``kept.{m} [T, k]``.
    """
    graph = GraphBuilder("text_model", target)
    tower = shape.sizes.text
    ids = graph.input("input_ids", INT64, ("texts", "length"))
    with graph.scope("embeddings"):
        words = graph.op(
            "Gather", vector(graph, weights, "text_model.embeddings.token_embedding.weight"), ids
        )
        places = vector(graph, weights, "text_model.embeddings.position_embedding.weight")
        length = axis_size(graph, ids, 1)
        begin, axis = graph.constant([0]), graph.constant([0])
        states = graph.op("Add", words, graph.op("Slice", places, begin, length, axis))
    run = _Tower(graph, shape, weights, "language", tower.blocks, tower.head_dim, shape.text)
    pooled = run.pooled(states, "text_model.encoder.layers", "text_model.final_layer_norm")
    _embeds(graph, weights, pooled, "text_projection", "text_embeds", shape.sizes.projection)
    return graph


@dataclass(frozen=True)
class _Tower:
    """The blocks of one tower; the token that stays is the first of an image, the last of a text."""

    graph: GraphBuilder
    shape: ClipShape
    weights: WeightSource
    part: Part
    blocks: tuple[BlockSize, ...]
    head_dim: int
    settings: TowerSettings

    @property
    def causal(self) -> bool:
        return self.part == "language"

    def pooled(self, states: ir.Value, name: str, final: str) -> ir.Value:
        """``[B, N, D]`` through the blocks and the final norm to the pooled ``[B, 1, D]``."""
        graph, weights, eps = self.graph, self.weights, self.settings.layer_norm_eps
        residual, original = states, None
        last = len(self.blocks)
        normed = layer_norm(graph, weights, states, f"{name}.0.layer_norm1", eps)
        for number, block in enumerate(self.blocks):
            here = f"{name}.{number}"
            drop = self.shape.drop(self.part, number + 1) if number + 1 < last else None
            with graph.scope(f"layers.{number}"):
                mixed, scores = self._attention(normed, here, block, drop is not None)
                if drop is not None and scores is not None:
                    keep = self._kept(scores, drop)
                    original = (
                        keep
                        if original is None
                        else graph.op("GatherElements", original, keep, axis=1)
                    )
                    output = f"kept.{drop.after_layer}"
                    graph.output(output, original, INT64, ("batch", f"kept_{drop.after_layer}"))
                    mixed, residual = (gather_rows(graph, x, keep) for x in (mixed, residual))
                if number + 1 == last:
                    mixed, residual = self._row_that_stays(mixed), self._row_that_stays(residual)
                mixed = linear(graph, weights, mixed, f"{here}.self_attn.out_proj", bias=True)
                normed, residual = add_layer_norm(
                    graph, weights, mixed, residual, f"{here}.layer_norm2", eps
                )
                wide = linear(graph, weights, normed, f"{here}.mlp.fc1", bias=True)
                wide = activation(graph, wide, self.settings.act)
                narrow = linear(graph, weights, wide, f"{here}.mlp.fc2", bias=True)
                following = final if number + 1 == last else f"{name}.{number + 1}.layer_norm1"
                normed, residual = add_layer_norm(graph, weights, narrow, residual, following, eps)
        return normed

    def _attention(
        self, normed: ir.Value, name: str, block: BlockSize, ranks: bool
    ) -> tuple[ir.Value, ir.Value | None]:
        """The heads' outputs ``[B, N, H·hd]`` and, before a drop, the scores ``[B, N]``."""
        graph = self.graph
        heads = Heads(block.heads, block.heads, self.head_dim)
        query, key, value = (
            linear(graph, self.weights, normed, f"{name}.self_attn.{kind}_proj", bias=True)
            for kind in "qkv"
        )
        if ranks:
            return ranked_attention(graph, query, key, value, heads, self.causal)
        return full_attention(graph, query, key, value, heads, self.causal), None

    def _kept(self, scores: ir.Value, drop: DropPlan) -> ir.Value:
        ratio = drop.text_keep_ratio if self.causal else drop.vision_keep_ratio
        return keep_strongest(self.graph, scores, ratio, last=self.causal)

    def _row_that_stays(self, x: ir.Value) -> ir.Value:
        graph = self.graph
        begin, end = ([-1], [2**31 - 1]) if self.causal else ([0], [1])
        axis = graph.constant([1])
        return graph.op("Slice", x, graph.constant(begin), graph.constant(end), axis)


def _patches(
    graph: GraphBuilder, shape: ClipShape, weights: WeightSource, pixels: ir.Value
) -> ir.Value:
    """Patch, class and position embeddings ``[I, 1 + patches, D]``."""
    name, width = "vision_model.embeddings", shape.sizes.vision.hidden_size
    kernel = vector(graph, weights, f"{name}.patch_embedding.weight")
    edge = [shape.patch_size] * 2
    grid = graph.op("Conv", cast_to_graph(graph, pixels), kernel, kernel_shape=edge, strides=edge)
    flat = graph.op("Reshape", grid, graph.constant([0, width, -1]))
    patches = graph.op("Transpose", flat, perm=(0, 2, 1))
    one_each = graph.op("Concat", axis_size(graph, pixels, 0), graph.constant([1, width]), axis=0)
    first = graph.op("Expand", vector(graph, weights, f"{name}.class_embedding"), one_each)
    positions = vector(graph, weights, f"{name}.position_embedding.weight")
    return graph.op("Add", graph.op("Concat", first, patches, axis=1), positions)


def _embeds(
    graph: GraphBuilder,
    weights: WeightSource,
    pooled: ir.Value,
    projection: str,
    output: str,
    width: int,
) -> None:
    """Project ``[B, 1, D]`` and divide by the length, in float32."""
    found = cast_to_float32(graph, linear(graph, weights, pooled, projection))
    flat = graph.op("Reshape", found, graph.constant([-1, width]))
    square = graph.op("Mul", flat, flat)
    total = graph.op("ReduceSum", square, graph.constant([1]), keepdims=1)
    floor = graph.constant(NORM_FLOOR, np.float32)
    length = graph.op("Max", graph.op("Sqrt", total), floor)
    graph.output(output, graph.op("Div", flat, length), FLOAT, ("batch", width))
