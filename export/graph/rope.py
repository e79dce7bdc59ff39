"""Rotary position embedding: tables computed at export, applied at the tokens' own positions."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.configs.llava import Rope
from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.linear import split_heads
from export.graph.token_gather import last_row


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Angle per position of each channel pair ``[hd/2]``, float32 as transformers computes it."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (np.float32(1.0) / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / np.float32(rope.factor)
    if rope.kind == "yarn":
        return _yarn(rope, plain, head_dim)
    # Llama 3: long wavelengths are stretched by the factor, short ones kept, the middle blended.
    length = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / plain
    smooth = np.clip((length / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * plain / rope.factor + smooth * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """YaRN: short wavelengths stay, long ones are stretched by the factor, and a ramp lies between."""
    length = rope.original_max_position_embeddings

    def channel(rotations: float) -> float:
        turned = math.log(length / (rotations * 2 * math.pi))
        return head_dim * turned / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    steps = np.arange(head_dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    return (plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)).astype(np.float32)


@dataclass(frozen=True)
class RopeTables:
    """cos and sin: of all positions ``[P, hd/2]`` (fused), or of the present ones ``[B, N, 1, hd/2]``."""

    position_ids: ir.Value
    cos: ir.Value
    sin: ir.Value

    def last(self, graph: GraphBuilder) -> "RopeTables":
        """The tables of the last present token."""
        position = last_row(graph, self.position_ids)
        if graph.target.fused:
            return RopeTables(position, self.cos, self.sin)
        return RopeTables(position, last_row(graph, self.cos), last_row(graph, self.sin))


class RotaryEmbedding:
    """Rotates queries and keys (the two halves of a head are the pairs, as in Llama)."""

    def __init__(self, graph: GraphBuilder, rope: Rope, head_dim: int, positions: int) -> None:
        self._graph = graph
        self._head_dim = head_dim
        shape = (positions, head_dim // 2)

        def angles() -> np.ndarray:
            steps = np.arange(positions, dtype=np.float32)[:, None]
            return steps * inverse_frequencies(rope, head_dim)[None]

        scale = np.float32(rope.attention_factor)
        self._cos = graph.weight("rope.cos", shape, lambda: np.cos(angles()) * scale)
        self._sin = graph.weight("rope.sin", shape, lambda: np.sin(angles()) * scale)

    def at(self, position_ids: ir.Value) -> RopeTables:
        """Tables for tokens at ``position_ids [B, N]``, shared by all blocks with these tokens."""
        if self._graph.target.fused:
            return RopeTables(position_ids, self._cos, self._sin)
        axis = self._graph.constant([2])
        cos, sin = (
            self._graph.op("Unsqueeze", self._graph.op("Gather", table, position_ids), axis)
            for table in (self._cos, self._sin)
        )
        return RopeTables(position_ids, cos, sin)

    def apply(self, x: ir.Value, tables: RopeTables, heads: int) -> ir.Value:
        """Rotate ``x [B, N, H·hd]``.

        Returns:
            fused flavour: ``[B, N, H·hd]``; standard flavour: ``[B, N, H, hd]``.
        """
        graph = self._graph
        if graph.target.fused:
            return graph.op(
                "RotaryEmbedding",
                x,
                tables.position_ids,
                tables.cos,
                tables.sin,
                domain=MICROSOFT,
                num_heads=heads,
                interleaved=0,
            )
        split = split_heads(graph, x, self._head_dim, heads)
        half = self._head_dim // 2
        left, right = graph.ops("Split", split, graph.constant([half, half]), outputs=2, axis=-1)
        rotated = (
            graph.op(
                "Sub",
                graph.op("Mul", left, tables.cos),
                graph.op("Mul", right, tables.sin),
            ),
            graph.op(
                "Add",
                graph.op("Mul", right, tables.cos),
                graph.op("Mul", left, tables.sin),
            ),
        )
        return graph.op("Concat", *rotated, axis=-1)
