"""Build the ONNX graph of a LLaVA decoder, and the token embedding.

The graph is built layer by layer from shapes and weights, one graph for prefill and decode. It computes
less than the model and gives the same results. If a drop ranks tokens by the attention of the block before
it, the remaining tokens are gathered right after that attention: the block's output projection and FFN
would compute rows that nobody reads. The last block computes only the last token, because only its logits are
needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from comp.checkpoints.tying import EMBEDDING, LM_HEAD
from comp.plan import DropPlan
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT
from export.artifact.llava_manifest import GRAPHS, IN_PLACE, graphs_of
from export.configs.llava import LlavaShape
from export.families.llava.vision import vision_encoder
from export.graph.attention import (
    CacheWindow,
    Heads,
    cache_window,
    cached_attention,
    check_heads,
    counted_window,
    fixed_window,
)
from export.graph.builder import IN_PLACE_OPSET, GraphBuilder, Target
from export.graph.decoder_rankings import diversity, importance_for_last
from export.graph.linear import (
    activation,
    cast_to_float32,
    cast_to_graph,
    linear,
    split_heads,
    vector,
)
from export.graph.norm import add_rms_norm, rms_norm
from export.graph.rope import RopeTables, RotaryEmbedding
from export.graph.token_gather import KEEP_FACTOR, Tokens, drop_tokens, gather_rows, last_row
from export.weights.checkpoint import WeightSource

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
DECODER = "model.language_model"
LATE = ("next_layer", "diversity")  # rankings that use the input of the next block


def build_graphs(
    shape: LlavaShape,
    weights: WeightSource,
    target: Target,
    directory: Path,
    written: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the graphs and their external data into ``directory``.

    The standard flavour has a second decoder with the same weights, if TensorRT supports the precision: its
    caches have a fixed size and are written in place, as TensorRT requires.

    Raises:
        CompExportError: a tensor is missing, or the flavour does not support the head size.
    """
    builders = (vision_encoder, embed_tokens, decoder_model)
    for name, build in zip(GRAPHS, builders, strict=True):
        build(shape, weights, target).save(directory / name)
        written(name)
    if IN_PLACE in graphs_of(target.flavour, target.precision):
        in_place = decoder_model(shape, weights, target, in_place=True)
        in_place.save(directory / IN_PLACE, weights_of=directory / GRAPHS[-1])
        written(IN_PLACE)


def embed_tokens(shape: LlavaShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [B, N] int64 → inputs_embeds [B, N, d] float32``."""
    graph = GraphBuilder("embed_tokens", target)
    ids = graph.input("input_ids", INT64, ("batch", "sequence"))
    table = vector(graph, weights, EMBEDDING)
    embeds = cast_to_float32(graph, graph.op("Gather", table, ids))
    graph.output(
        "inputs_embeds", embeds, FLOAT, ("batch", "sequence", shape.sizes.text.hidden_size)
    )
    return graph


def decoder_model(
    shape: LlavaShape, weights: WeightSource, target: Target, in_place: bool = False
) -> GraphBuilder:
    """The decoder, for prefill (empty past) and decode steps (one text token, no vision tokens).

    Inputs ``inputs_embeds [B, N, d]``, ``position_ids [B, N]``, ``vision_positions [B, Nv]``,
    ``text_positions [B, Nt]`` (ascending; together ``0..N-1``), ``past_key_values.{l}.key`` and
    ``.value [B, Hkv_l, P_l, hd]``. Outputs ``logits [B, 1, V]`` of the last token, ``present.*``,
    and for each drop place ``kept.{m} [B, k_m]``, original indices ascending.

    ``in_place``: past and present are one buffer ``[B, Hkv_l, S_s, hd]`` of fixed size, and
    ``cache_lengths [segments, B]`` holds the number of filled places; a segment is the blocks
    between two drop places, whose caches are equally long. The onnxruntime flavour has that input too: its
    past and present may be one buffer; otherwise the present is as long as its tokens.
    """
    return _Decoder(shape, weights, target, in_place).build()


@dataclass(frozen=True)
class Segment:
    """The blocks between two drop places: their tokens, and what is computed once for all of them."""

    tokens: Tokens
    rotary: RotaryEmbedding
    tables: RopeTables
    window: CacheWindow
    number: int


class _Decoder:
    def __init__(
        self, shape: LlavaShape, weights: WeightSource, target: Target, in_place: bool
    ) -> None:
        opset = IN_PLACE_OPSET if in_place else None
        self.graph = GraphBuilder(
            "decoder_in_place" if in_place else "decoder_model", target, opset
        )
        self.in_place = in_place
        self.lengths: ir.Value | None = None
        self.shape = shape
        self.sizes = shape.sizes
        self.weights = weights
        self.drops = {drop.after_layer: drop for drop in shape.sizes.drops}
        check_heads(self.graph, shape.sizes.text.head_dim)

    def build(self) -> GraphBuilder:
        graph, sizes, weights = self.graph, self.sizes, self.weights
        epsilon = self.shape.rms_norm_eps
        embeds = graph.input("inputs_embeds", FLOAT, ("batch", "sequence", sizes.text.hidden_size))
        tokens = Tokens(
            position_ids=graph.input("position_ids", INT64, ("batch", "sequence")),
            vision=graph.input("vision_positions", INT64, ("batch", "vision_tokens")),
            text=graph.input("text_positions", INT64, ("batch", "text_tokens")),
        )
        if self.in_place or graph.target.fused:
            rows = len(self.drops) + 1 if self.in_place else "segments"
            self.lengths = graph.input(CACHE_LENGTHS, INT64, (rows, "batch"))
        pasts = self._pasts()
        factor = None
        if self.drops and graph.target.fused:
            factor = graph.default_input(KEEP_FACTOR, np.array(1.0, np.float32))
        rotary = RotaryEmbedding(
            graph, self.shape.rope, sizes.text.head_dim, self.shape.max_position_embeddings
        )
        wide = graph.target.wide
        residual = embeds if wide.residual(0) else cast_to_graph(graph, embeds)
        with graph.scope("layers.0"):
            first = f"{DECODER}.layers.0.input_layernorm"
            with graph.in_float32(wide.residual(0)):
                normed = rms_norm(graph, weights, residual, first, epsilon)
            if wide.residual(0):
                normed = cast_to_graph(graph, normed)
        segment = self._segment(tokens, rotary, pasts[0][0], 0)
        precomputed_key = None
        for number in range(sizes.num_layers):
            name = f"{DECODER}.layers.{number}"
            drop = self.drops.get(number + 1)
            early = drop is not None and drop.ranking not in LATE
            with graph.scope(f"layers.{number}"):
                if wide.residual_from == number > 0:
                    residual = cast_to_float32(graph, residual)
                mixed, query, key = self._attention(
                    normed, number, pasts[number], segment, precomputed_key
                )
                precomputed_key = None
                if drop is not None and early:
                    mean = drop.ranking == "mean_head"
                    scores = importance_for_last(graph, query, key, self._heads(number), mean)
                    segment, mixed, residual = self._dropped(
                        segment, scores, drop, factor, pasts[number + 1][0], mixed, residual
                    )
                if number + 1 == sizes.num_layers:
                    mixed, residual = last_row(graph, mixed), last_row(graph, residual)
                mixed = self._attention_output(mixed, number)
                normed, residual = self._add_norm(
                    mixed, residual, f"{name}.post_attention_layernorm", number
                )
                ffn = self._feed_forward(normed, number)
                following = (
                    f"{DECODER}.layers.{number + 1}.input_layernorm"
                    if number + 1 < sizes.num_layers
                    else f"{DECODER}.norm"
                )
                normed, residual = self._add_norm(ffn, residual, following, number)
            if drop is None or early:
                continue
            with graph.scope(f"layers.{number + 1}"):
                gathered = [normed, residual]
                if drop.ranking == "next_layer":
                    scores, key = self._scores_ahead(normed, number + 1, segment)
                    gathered.append(key)
                else:
                    scores = diversity(graph, key, normed, segment.tokens, self._heads(number))
                segment, normed, residual, *others = self._dropped(
                    segment, scores, drop, factor, pasts[number + 1][0], *gathered
                )
                precomputed_key = others[0] if others else None
        if wide.head:
            normed = cast_to_float32(graph, normed)
        with graph.in_float32(wide.head):
            logits = linear(graph, weights, normed, LM_HEAD.removesuffix(".weight"))
            logits = cast_to_float32(graph, logits)
        graph.output("logits", logits, FLOAT, ("batch", 1, sizes.text.vocab_size))
        return graph

    def _pasts(self) -> list[tuple[ir.Value, ir.Value]]:
        """Declare the cache inputs; blocks between two drop places share the name of a length."""
        sizes, dtype, segment = self.sizes, self.graph.target.dtype, 0
        pasts = []
        for number, heads in enumerate(sizes.text.heads):
            segment += number in self.drops
            length = f"capacity_{segment}" if self.in_place else f"past_{segment}"
            dims = ("batch", heads, length, sizes.text.head_dim)
            key, value = (
                self.graph.input(f"{PAST}{number}.{kind}", dtype, dims) for kind in ("key", "value")
            )
            pasts.append((key, value))
        return pasts

    def _segment(
        self, tokens: Tokens, rotary: RotaryEmbedding, past_key: ir.Value, number: int
    ) -> "Segment":
        """Return what the blocks up to the next drop place share; ``past_key`` is that of the first block."""
        present = tokens.position_ids
        if self.lengths is None:
            window = cache_window(self.graph, present, past_key)
        else:
            row = self.graph.op("Gather", self.lengths, self.graph.constant(number), axis=0)
            if self.in_place:
                window = fixed_window(self.graph, present, past_key, row)
            else:
                window = counted_window(self.graph, present, row)
        return Segment(tokens, rotary, rotary.at(present), window, number)

    def _dropped(
        self,
        segment: "Segment",
        scores: ir.Value,
        drop: DropPlan,
        factor: ir.Value | None,
        past_key: ir.Value,
        *rows: ir.Value,
    ) -> tuple[Any, ...]:
        """The segment after a drop place, and the ``rows [B, N, …]`` of the remaining tokens."""
        graph = self.graph
        more = drop.after_layer < max(self.drops)
        gathered = drop_tokens(graph, segment.tokens, scores, drop, factor, more)
        assert gathered.tokens.original is not None
        graph.output(
            f"kept.{drop.after_layer}", gathered.tokens.original, INT64,
            ("batch", f"kept_{drop.after_layer}"),
        )  # fmt: skip
        left = [gather_rows(graph, x, gathered.keep) for x in rows]
        return self._segment(gathered.tokens, segment.rotary, past_key, segment.number + 1), *left

    def _heads(self, number: int) -> Heads:
        text = self.sizes.text
        groups = text.blocks[number].heads
        return Heads(groups * text.group_size, groups, text.head_dim)

    def _project(self, normed: ir.Value, number: int, kind: str) -> ir.Value:
        graph, text = self.graph, self.sizes.text
        name = f"{DECODER}.layers.{number}.self_attn"
        projected = linear(graph, self.weights, normed, f"{name}.{kind}_proj", text.qkv_bias)
        if not text.qk_norm or kind == "v":
            return projected
        # Each head is normalised by itself.
        heads = self._heads(number)
        count = heads.query if kind == "q" else heads.key_value
        split = split_heads(graph, projected, heads.dim, count)
        split = rms_norm(graph, self.weights, split, f"{name}.{kind}_norm", self.shape.rms_norm_eps)
        return graph.op("Reshape", split, graph.constant([0, 0, count * heads.dim]))

    def _scores_ahead(
        self, normed: ir.Value, number: int, segment: "Segment"
    ) -> tuple[ir.Value, ir.Value]:
        """Scores ``[B, N]`` by the queries and keys of the next block, and its rotated keys."""
        graph, heads = self.graph, self._heads(number)
        key = segment.rotary.apply(
            self._project(normed, number, "k"), segment.tables, heads.key_value
        )
        query = self._project(last_row(graph, normed), number, "q")
        query = segment.rotary.apply(query, segment.tables.last(graph), heads.query)
        return importance_for_last(graph, query, key, heads, mean=True), key

    def _attention(
        self,
        normed: ir.Value,
        number: int,
        past: tuple[ir.Value, ir.Value],
        segment: "Segment",
        key: ir.Value | None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The heads' outputs ``[B, N, H·hd]``, and the rotated query and key.

        ``key`` is given if the ranking has computed it already.
        """
        graph, heads = self.graph, self._heads(number)
        query, value = (self._project(normed, number, kind) for kind in "qv")
        query = segment.rotary.apply(query, segment.tables, heads.query)
        if key is None:
            key = segment.rotary.apply(
                self._project(normed, number, "k"), segment.tables, heads.key_value
            )
        attended = cached_attention(graph, query, key, value, past, segment.window, heads)
        length = f"capacity_{segment.number}" if self.in_place else f"total_{segment.number}"
        dims = ("batch", heads.key_value, length, heads.dim)
        dtype = graph.target.dtype
        for kind, cache in (("key", attended.present_key), ("value", attended.present_value)):
            graph.output(f"{PRESENT}{number}.{kind}", cache, dtype, dims, renamed=self.in_place)
        return attended.output, query, key

    def _attention_output(self, mixed: ir.Value, number: int) -> ir.Value:
        """The output of attention, in the precision of the residual stream."""
        graph, wide = self.graph, self.graph.target.wide
        name = f"{DECODER}.layers.{number}.self_attn.o_proj"
        inside = number in wide.outputs
        if inside:
            mixed = cast_to_float32(graph, mixed)
        with graph.in_float32(inside):
            mixed = linear(graph, self.weights, mixed, name, self.sizes.text.output_bias)
        return cast_to_float32(graph, mixed) if wide.residual(number) and not inside else mixed

    def _add_norm(
        self, x: ir.Value, residual: ir.Value, name: str, number: int
    ) -> tuple[ir.Value, ir.Value]:
        """``(norm(residual + x), residual + x)``, the former in the graph's precision."""
        graph, epsilon = self.graph, self.shape.rms_norm_eps
        wide = graph.target.wide.residual(number)
        with graph.in_float32(wide):
            normed, total = add_rms_norm(graph, self.weights, x, residual, name, epsilon)
        return cast_to_graph(graph, normed) if wide else normed, total

    def _feed_forward(self, normed: ir.Value, number: int) -> ir.Value:
        """The output of the FFN, in the precision of the residual stream."""
        graph, wide = self.graph, self.graph.target.wide
        inside = number in wide.ffn
        if inside:
            normed = cast_to_float32(graph, normed)
        with graph.in_float32(inside):
            added = self._channels(normed, f"{DECODER}.layers.{number}")
        return cast_to_float32(graph, added) if wide.residual(number) and not inside else added

    def _channels(self, normed: ir.Value, name: str) -> ir.Value:
        graph, bias = self.graph, self.sizes.text.mlp_bias
        gate = linear(graph, self.weights, normed, f"{name}.mlp.gate_proj", bias)
        up = linear(graph, self.weights, normed, f"{name}.mlp.up_proj", bias)
        wide = graph.op("Mul", activation(graph, gate, "silu"), up)
        return linear(graph, self.weights, wide, f"{name}.mlp.down_proj", bias)
