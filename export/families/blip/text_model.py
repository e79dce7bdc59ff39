"""Build BLIP's text models: encoders that drop tokens, and a decoder with caches.

Post-norm blocks: each sub-layer's result is added to its input and then normalised. An encoder drops tokens
right after the self-attention that ranks them; as everything up to cross-attention works row by row, the
output projection and its norm see only the remaining tokens. If only the first token of the last block is
used, that block computes only its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from comp.checkpoints.shapes import BlockSize, TextShape
from comp.checkpoints.tying import BLIP_HEAD, BLIP_WORDS
from comp.plan import DropPlan
from export.artifact.encoder_ports import KINDS
from export.configs.blip import BlipShape
from export.graph.attention import (
    CacheWindow,
    Heads,
    cache_window,
    cached_attention,
    check_heads,
    cross_attention,
    cross_keys,
    full_attention,
    ranked_attention,
)
from export.graph.builder import GraphBuilder
from export.graph.encoder_rankings import AttentionRecord
from export.graph.kept_tokens import KeptTokens, drops_early
from export.graph.linear import activation, axis_size, linear, split_heads, vector
from export.graph.norm import add_layer_norm, layer_norm
from export.graph.token_dictionary import TokenDictionary
from export.graph.token_gather import last_row
from export.weights.checkpoint import WeightSource

ENCODER, DECODER = "text_encoder", "text_decoder.bert"


@dataclass(frozen=True)
class TextModel:
    """One text model to build into a graph.

    Attributes:
        graph, shape, weights: the graph that is built, the model's shape and its weights.
        name: prefix of its tensors.
        sizes: sizes of its blocks.
    """

    graph: GraphBuilder
    shape: BlipShape
    weights: WeightSource
    name: str
    sizes: TextShape

    def encode(
        self, input_ids: ir.Value, memories: Sequence[ir.Value], only_first: bool
    ) -> ir.Value:
        """Texts ``[T, L]`` to states ``[T, K, D]`` of the remaining tokens, ``[T, 1, D]`` if ``only_first``.

        Args:
            input_ids: texts of one length; the first token always stays.
            memories: states ``[T, M, D]``, one for each branch of cross-attention; an empty sequence leaves
                cross-attention out.
            only_first: only the first token is used; a drop in the last block has no effect.
        """
        graph = self.graph
        kept = KeptTokens(graph, last=False)
        dictionary = TokenDictionary(graph, self.weights, "language")
        states = self._embeddings(self._words(), input_ids, graph.constant([0]))
        for number, block in enumerate(self.sizes.blocks):
            name = self._block(number)
            alone = only_first and number + 1 == len(self.sizes.blocks)
            drop = None if alone else self.shape.drop("language", number + 1)
            with graph.scope(f"layers.{number}"):
                queries = kept.only(states) if alone else states
                mixed, record = self._attention(queries, states, name, block, drop, alone)
                residual = queries
                early = drop is not None and drops_early(drop)
                if drop is not None and record is not None and early:
                    mixed, residual = kept.drop(record, drop, mixed, residual)
                states = self._added(mixed, residual, f"{name}.attention.output")
                if drop is not None and record is not None and not early:
                    states = kept.left(record, drop, states, dictionary.responses)
                if memories:
                    branches = [
                        self._look(states, memory, f"{name}.crossattention", branch, block, alone)
                        for branch, memory in enumerate(memories)
                    ]
                    states = self._crossed(branches, states, f"{name}.crossattention.output", block)
                states = self._feed_forward(states, name)
        return states

    def cross_kv(self, memory: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
        """Keys and values ``[B, H_l, M, hd]`` of ``memory [B, M, D]`` for each block."""
        pairs = []
        for number, block in enumerate(self.sizes.blocks):
            heads = self._heads(block.cross_heads[0])
            module = f"{self._block(number)}.crossattention.self"
            with self.graph.scope(f"layers.{number}"):
                key, value = (
                    cross_keys(self.graph, self._linear(memory, f"{module}.{kind}"), heads)
                    for kind in KINDS
                )
            pairs.append((key, value))
        return pairs

    def decode(
        self,
        input_ids: ir.Value,
        pasts: Sequence[tuple[ir.Value, ir.Value]],
        cross: Sequence[tuple[ir.Value, ir.Value]],
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:
        """Decode the present tokens after the past ones.

        Args:
            input_ids: ``[B, N]``.
            pasts: keys and values ``[B, H_l, P, hd]`` of each block's self-attention.
            cross: keys and values of ``cross_kv``.

        Returns:
            Logits ``[B, 1, V]`` of the last token, and the caches with the present tokens.
        """
        graph = self.graph
        check_heads(graph, self.sizes.head_dim)
        words = self._words()
        states = self._embeddings(words, input_ids, axis_size(graph, pasts[0][0], 2))
        window = cache_window(graph, input_ids, pasts[0][0])
        presents = []
        for number, block in enumerate(self.sizes.blocks):
            name = self._block(number)
            with graph.scope(f"layers.{number}"):
                mixed, present = self._cached(states, name, block, pasts[number], window)
                presents.append(present)
                ends = number + 1 == len(self.sizes.blocks)
                if ends:
                    mixed, states = last_row(graph, mixed), last_row(graph, states)
                states = self._added(mixed, states, f"{name}.attention.output")
                heads = self._heads(block.cross_heads[0])
                with graph.scope("cross"):
                    query = self._linear(states, f"{name}.crossattention.self.query")
                    mixed = cross_attention(graph, query, *cross[number], heads, one_query=ends)
                states = self._crossed([mixed], states, f"{name}.crossattention.output", block)
                states = self._feed_forward(states, name)
        return self._logits(states, self._head(words)), presents

    def _block(self, number: int) -> str:
        return f"{self.name}.encoder.layer.{number}"

    def _heads(self, count: int) -> Heads:
        return Heads(count, count, self.sizes.head_dim)

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        return linear(self.graph, self.weights, x, name, bias=True)

    def _words(self) -> ir.Value:
        name = f"{self.name}.embeddings.word_embeddings.weight"
        return vector(self.graph, self.weights, name)

    def _embeddings(self, words: ir.Value, input_ids: ir.Value, past: ir.Value) -> ir.Value:
        """Word and position embeddings ``[B, N, D]``; ``past [1]`` tokens precede them."""
        graph, weights, name = self.graph, self.weights, f"{self.name}.embeddings"
        with graph.scope("embeddings"):
            places = vector(graph, weights, f"{name}.position_embeddings.weight")
            end = graph.op("Add", past, axis_size(graph, input_ids, 1))
            present = graph.op("Slice", places, past, end, graph.constant([0]))
            states = graph.op("Add", graph.op("Gather", words, input_ids), present)
            epsilon = self.shape.text.layer_norm_eps
            return layer_norm(graph, weights, states, f"{name}.LayerNorm", epsilon)

    def _attention(
        self,
        queries: ir.Value,
        states: ir.Value,
        name: str,
        block: BlockSize,
        drop: DropPlan | None,
        alone: bool,
    ) -> tuple[ir.Value, AttentionRecord | None]:
        """The heads' outputs ``[T, N, H·hd]`` and, before a drop, the record to rank by."""
        query, key, value = self._projected(queries, states, f"{name}.attention.self")
        heads = self._heads(block.heads)
        if drop is not None:
            mixed, seen = ranked_attention(self.graph, query, key, value, heads)
            return mixed, AttentionRecord(seen, key, mixed, heads, last=False, query=query)
        return full_attention(self.graph, query, key, value, heads, one_query=alone), None

    def _projected(
        self, queries: ir.Value, states: ir.Value, module: str
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        query = self._linear(queries, f"{module}.query")
        key, value = (self._linear(states, f"{module}.{kind}") for kind in KINDS)
        return query, key, value

    def _cached(
        self,
        states: ir.Value,
        name: str,
        block: BlockSize,
        past: tuple[ir.Value, ir.Value],
        window: CacheWindow,
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """The heads' outputs ``[B, N, H·hd]`` and the caches with the present tokens."""
        graph, heads = self.graph, self._heads(block.heads)
        query, key, value = self._projected(states, states, f"{name}.attention.self")
        if not graph.target.fused:
            query, key = (split_heads(graph, x, heads.dim, heads.query) for x in (query, key))
        attended = cached_attention(graph, query, key, value, past, window, heads)
        return attended.output, (attended.present_key, attended.present_value)

    def _look(
        self,
        states: ir.Value,
        memory: ir.Value,
        name: str,
        branch: int,
        block: BlockSize,
        alone: bool,
    ) -> ir.Value:
        """The output of one branch of cross-attention to ``memory [T, M, D]``: ``[T, N, H·hd]``."""
        suffix = "" if len(block.cross_heads) == 1 else str(branch)
        heads = self._heads(block.cross_heads[branch])
        with self.graph.scope(f"cross{suffix}"):
            query, key, value = self._projected(states, memory, f"{name}.self{suffix}")
            return full_attention(self.graph, query, key, value, heads, one_query=alone)

    def _crossed(
        self, branches: list[ir.Value], residual: ir.Value, name: str, block: BlockSize
    ) -> ir.Value:
        """Join the branches' outputs and add the residual: a single one, their mean, or a merge layer."""
        if len(branches) == 1:
            return self._added(branches[0], residual, name)
        graph = self.graph
        first, second = (
            self._linear(mixed, f"{name}.dense{branch}") for branch, mixed in enumerate(branches)
        )
        if block.merges:
            both = graph.op("Concat", first, second, axis=-1)
            joined = self._linear(both, f"{name}.merge_layer")
        else:
            joined = graph.op("Mul", graph.op("Add", first, second), graph.scalar(0.5))
        return self._normed(joined, residual, name)

    def _feed_forward(self, states: ir.Value, name: str) -> ir.Value:
        wide = self._linear(states, f"{name}.intermediate.dense")
        wide = activation(self.graph, wide, self.shape.text.act)
        return self._added(wide, states, f"{name}.output")

    def _added(self, x: ir.Value, residual: ir.Value, name: str) -> ir.Value:
        return self._normed(self._linear(x, f"{name}.dense"), residual, name)

    def _normed(self, x: ir.Value, residual: ir.Value, name: str) -> ir.Value:
        epsilon = self.shape.text.layer_norm_eps
        norm = f"{name}.LayerNorm"
        return add_layer_norm(self.graph, self.weights, x, residual, norm, epsilon)[0]

    def _head(self, words: ir.Value) -> ir.Value:
        """The output layer ``[V, D]``: the word embedding, stored once, or a separate matrix."""
        own, read = f"{BLIP_HEAD}.decoder.weight", self.weights.read
        self.weights.shape(own)  # refuses a checkpoint that lacks an output layer
        if own not in self.weights.names() or np.array_equal(read(own), read(BLIP_WORDS)):
            return words
        return vector(self.graph, self.weights, own)

    def _logits(self, states: ir.Value, head: ir.Value) -> ir.Value:
        """``[B, 1, D] → [B, 1, V]``."""
        graph, weights = self.graph, self.weights
        with graph.scope("head"):
            x = self._linear(states, f"{BLIP_HEAD}.transform.dense")
            x = activation(graph, x, self.shape.text.act)
            epsilon = self.shape.text.layer_norm_eps
            x = layer_norm(graph, weights, x, f"{BLIP_HEAD}.transform.LayerNorm", epsilon)
            flat = graph.op("Reshape", x, graph.constant([-1, self.sizes.hidden_size]))
            own = f"{BLIP_HEAD}.decoder.bias"
            weights.shape(own)  # refuses a checkpoint that lacks it
            stored = own if own in weights.names() else f"{BLIP_HEAD}.bias"
            bias = vector(graph, weights, stored)
            logits = graph.op("Gemm", flat, head, bias, transB=1)
            return graph.op("Reshape", logits, graph.constant([-1, 1, self.sizes.vocab_size]))
