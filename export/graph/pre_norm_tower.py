"""Build a pre-norm Transformer encoder that drops tokens: both towers of CLIP, and BLIP's vision tower.

Dropped tokens go right after the attention that ranks them: the block's output projection and FFN would
compute rows that nobody reads. Merged tokens go after the output projection.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from comp.checkpoints.shapes import BlockSize
from comp.plan import DropPlan, Part
from export.configs.towers import TowerSettings
from export.graph.attention import Heads, full_attention, ranked_attention
from export.graph.builder import GraphBuilder
from export.graph.encoder_rankings import AttentionRecord
from export.graph.kept_tokens import KeptTokens, drops_early
from export.graph.linear import activation, linear
from export.graph.norm import add_layer_norm, layer_norm
from export.graph.token_dictionary import TokenDictionary
from export.weights.checkpoint import WeightSource


@dataclass(frozen=True)
class Projections:
    """Names of the attention tensors of a block.

    Attributes:
        inputs: names of queries, keys and values; a single name if they are one tensor.
        output: name of the output projection.
    """

    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "out_proj"


@dataclass(frozen=True)
class PreNormTower:
    """The blocks of one tower.

    Attributes:
        graph, weights: the graph that is built, and its weights.
        name: name of the blocks, without their numbers.
        final: name of the norm after them.
        blocks, head_dim: their sizes.
        settings: activation and epsilon.
        drop: returns the drop after a number of blocks, or ``None``.
        causal: tokens see those before them, and the last one always stays; otherwise the first stays.
        part: the part of the model that the tower is.
        projections: names within a block's ``self_attn``.
    """

    graph: GraphBuilder
    weights: WeightSource
    name: str
    final: str
    blocks: tuple[BlockSize, ...]
    head_dim: int
    settings: TowerSettings
    drop: Callable[[int], DropPlan | None]
    causal: bool = False
    part: Part = "vision"
    projections: Projections = Projections()

    def pooled(self, states: ir.Value) -> ir.Value:
        """``[B, N, D]`` through blocks and norm to the token that always stays, ``[B, 1, D]``.

        In the last block only that token is computed further, because nothing else is read.
        """
        return self._run(states, one=True)

    def states(self, states: ir.Value) -> ir.Value:
        """``[B, N, D]`` through blocks and norm to the states of the remaining tokens ``[B, K, D]``."""
        return self._run(states, one=False)

    def _run(self, residual: ir.Value, one: bool) -> ir.Value:
        graph, weights, eps = self.graph, self.weights, self.settings.layer_norm_eps
        kept = KeptTokens(graph, last=self.causal)
        dictionary = TokenDictionary(graph, weights, self.part)
        count = len(self.blocks)
        normed = layer_norm(graph, weights, residual, f"{self.name}.0.layer_norm1", eps)
        for number, block in enumerate(self.blocks):
            name, ends = f"{self.name}.{number}", number + 1 == count
            drop = None if ends and one else self.drop(number + 1)
            with graph.scope(f"layers.{number}"):
                bias = kept.log_sizes()
                mixed, record = self._attention(normed, f"{name}.self_attn", block, drop, bias)
                early = drop is not None and drops_early(drop)
                if drop is not None and record is not None and early:
                    mixed, residual = kept.drop(record, drop, mixed, residual)
                if ends and one:
                    mixed, residual = kept.only(mixed), kept.only(residual)
                output = f"{name}.self_attn.{self.projections.output}"
                mixed = linear(graph, weights, mixed, output, bias=True)
                norm = f"{name}.layer_norm2"
                if drop is not None and record is not None and not early:
                    states = graph.op("Add", residual, mixed)
                    residual = kept.left(record, drop, states, dictionary.responses)
                    normed = layer_norm(graph, weights, residual, norm, eps)
                else:
                    normed, residual = add_layer_norm(graph, weights, mixed, residual, norm, eps)
                wide = linear(graph, weights, normed, f"{name}.mlp.fc1", bias=True)
                wide = activation(graph, wide, self.settings.act)
                narrow = linear(graph, weights, wide, f"{name}.mlp.fc2", bias=True)
                following = self.final if ends else f"{self.name}.{number + 1}.layer_norm1"
                normed, residual = add_layer_norm(graph, weights, narrow, residual, following, eps)
        return normed

    def _attention(
        self,
        normed: ir.Value,
        name: str,
        block: BlockSize,
        drop: DropPlan | None,
        bias: ir.Value | None,
    ) -> tuple[ir.Value, AttentionRecord | None]:
        """The heads' outputs ``[B, N, H·hd]`` and, before a drop, the record to rank by.

        ``bias`` is added to the logits of each token, ``[B, 1, 1, N]``.
        """
        graph = self.graph
        heads = Heads(block.heads, block.heads, self.head_dim)
        projected = [
            linear(graph, self.weights, normed, f"{name}.{projection}", bias=True)
            for projection in self.projections.inputs
        ]
        if len(projected) == 1:
            width = block.heads * self.head_dim
            parts = graph.constant([width] * 3)
            query, key, value = graph.ops("Split", projected[0], parts, outputs=3, axis=-1)
        else:
            query, key, value = projected
        if drop is not None or bias is not None:
            mixed, seen = ranked_attention(graph, query, key, value, heads, self.causal, bias)
            record = AttentionRecord(seen, key, mixed, heads, self.causal, query)
            return mixed, record if drop is not None else None
        return full_attention(graph, query, key, value, heads, self.causal), None
