"""Attention with a cache (decoder) and without (vision tower), and with weights that rank tokens.

``fused``: GroupQueryAttention and MultiHeadAttention of onnxruntime. Otherwise, in float32, MatMul
and Softmax, which every runtime parses; in half precision ONNX's ``Attention``, which TensorRT turns
into one fused kernel. In float32 it refuses it (seen: TensorRT-RTX 1.7; its fused kernels are of half
precision: https://github.com/NVIDIA/TensorRT/issues/2981), and on a
CPU the operator is about half as fast (seen: ONNX Runtime 1.31).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from comp.errors import CompExportError
from export.graph.builder import MICROSOFT, GraphBuilder
from export.graph.linear import axis_size, cast, cast_to_float32, cast_to_graph, split_heads

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Heads:
    """Head counts of one block after pruning."""

    query: int
    key_value: int
    dim: int

    @property
    def group(self) -> int:
        return self.query // self.key_value


@dataclass(frozen=True)
class CacheWindow:
    """The positions that present and past tokens reach, shared by the blocks between two drop places.

    ``fused``: ``lengths [B]`` (last index, int32) and ``total`` (int32 scalar). Standard: ``mask``
    ``[B or 1, 1, N, keys]``, a boolean for ``Attention`` (may attend), otherwise added to the scores
    (0, or the lowest number). ``write [B]``: where the present tokens go in a cache of fixed size.
    """

    lengths: ir.Value | None = None
    total: ir.Value | None = None
    mask: ir.Value | None = None
    write: ir.Value | None = None


def cache_window(graph: GraphBuilder, tokens: ir.Value, past_key: ir.Value) -> CacheWindow:
    """The window of blocks that see ``tokens [B, N]`` after a past ``past_key [B, Hkv, P, hd]``."""
    present, past = axis_size(graph, tokens, 1), axis_size(graph, past_key, 2)
    total = graph.op("Add", present, past)
    if graph.target.fused:
        last = cast(graph, graph.op("Sub", total, graph.constant([1])), ir.DataType.INT32)
        return CacheWindow(
            lengths=graph.op("Expand", last, axis_size(graph, tokens, 0)),
            total=graph.op("Squeeze", cast(graph, total, ir.DataType.INT32), graph.constant([0])),
        )
    queries = graph.op("Unsqueeze", _count(graph, past, total), graph.constant([0, 1, 3]))
    return CacheWindow(mask=_causal_mask(graph, queries, total))  # [1, 1, N, P+N]


def counted_window(graph: GraphBuilder, tokens: ir.Value, lengths: ir.Value) -> CacheWindow:
    """The window of ``tokens [B, N]`` after ``lengths [B]`` past ones, for GroupQueryAttention.

    Lengths are counted and not read off the caches' shape: caches may have spare places, so that a
    step writes its token there instead of copying the whole cache.
    """
    total = graph.op("Add", lengths, axis_size(graph, tokens, 1))  # [B]
    last = graph.op("Sub", total, graph.constant([1]))
    longest = graph.op("ReduceMax", total, keepdims=0)
    return CacheWindow(
        lengths=cast(graph, last, ir.DataType.INT32), total=cast(graph, longest, ir.DataType.INT32)
    )


def fixed_window(
    graph: GraphBuilder, tokens: ir.Value, past_key: ir.Value, lengths: ir.Value
) -> CacheWindow:
    """The window over caches of fixed size ``past_key [B, Hkv, S, hd]``.

    ``lengths [B]`` of the S places hold past tokens; the present ``tokens [B, N]`` go after them.
    All S places are compared, so that the shapes of a step stay the same and nothing is sliced.
    """
    none = graph.constant([0])
    places = _count(graph, none, axis_size(graph, tokens, 1))  # [N]
    starts = graph.op("Unsqueeze", lengths, graph.constant([1, 2, 3]))  # [B, 1, 1, 1]
    queries = graph.op("Add", starts, graph.op("Unsqueeze", places, graph.constant([1])))
    mask = _causal_mask(graph, queries, axis_size(graph, past_key, 2))
    return CacheWindow(mask=mask, write=lengths)  # [B, 1, N, S]


@dataclass(frozen=True)
class Attended:
    """Output ``[B, N, H·hd]`` and the caches after it ``[B, Hkv, P+N, hd]``."""

    output: ir.Value
    present_key: ir.Value
    present_value: ir.Value


def cached_attention(
    graph: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past: tuple[ir.Value, ir.Value],
    window: CacheWindow,
    heads: Heads,
) -> Attended:
    """Causal attention of the present tokens to past and present ones.

    ``query`` and ``key`` are rotated, in the layout of ``RotaryEmbedding.apply``; ``value`` is
    ``[B, N, Hkv·hd]``.
    """
    if graph.target.fused:
        output, present_key, present_value = graph.ops(
            "GroupQueryAttention",
            query,
            key,
            value,
            past[0],
            past[1],
            window.lengths,
            window.total,
            outputs=3,
            domain=MICROSOFT,
            num_heads=heads.query,
            kv_num_heads=heads.key_value,
            scale=heads.dim**-0.5,
            do_rotary=0,
        )
        return Attended(output, present_key, present_value)
    order = (0, 2, 1, 3)
    if not graph.target.attention_operator:
        query = graph.op("Mul", query, graph.scalar(heads.dim**-0.5))
    queries = graph.op("Transpose", query, perm=order)  # [B, H, N, hd]
    new_key = graph.op("Transpose", key, perm=order)  # [B, Hkv, N, hd]
    new_value = graph.op(
        "Transpose", split_heads(graph, value, heads.dim, heads.key_value), perm=order
    )
    keys, values = (
        graph.op("Concat", old, new, axis=2)
        if window.write is None
        else graph.op("TensorScatter", old, new, window.write, axis=2, mode="linear")
        for old, new in zip(past, (new_key, new_value), strict=True)
    )
    if graph.target.attention_operator:
        queries = _at_least_two(graph, queries, heads)
        mixed = graph.op("Attention", queries, keys, values, window.mask, scale=heads.dim**-0.5)
        mixed = _of_heads(graph, mixed, heads)
        return Attended(_join_heads(graph, mixed, heads), keys, values)
    scores = graph.op(
        "MatMul", queries, graph.op("Transpose", _repeat(graph, keys, heads), perm=(0, 1, 3, 2))
    )
    weights = graph.op("Softmax", graph.op("Add", scores, window.mask), axis=-1)
    mixed = graph.op("MatMul", weights, _repeat(graph, values, heads))
    return Attended(_join_heads(graph, mixed, heads), keys, values)


def causal_square(graph: GraphBuilder, states: ir.Value) -> ir.Value:
    """The causal mask ``[1, 1, N, N]`` of ``states [B, N, D]``: tokens see themselves and those before."""
    count = axis_size(graph, states, 1)
    places = graph.op(
        "Unsqueeze", _count(graph, graph.constant([0]), count), graph.constant([0, 1, 3])
    )
    return _causal_mask(graph, places, count)


def ranked_attention(
    graph: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    heads: Heads,
    causal: bool = False,
    bias: ir.Value | None = None,
) -> tuple[ir.Value, ir.Value]:
    """Attention whose weights also rank the tokens: one matrix serves both.

    Args:
        query, key, value: ``[B, N, H·hd]``.
        heads: as many key heads as query heads.
        causal: each token sees itself and those before.
        bias: added to the logits on each token, ``[B, 1, 1, N]`` float32.

    Returns:
        Output ``[B, N, H·hd]``, and the weights ``[B, H, N, N]`` float32.
    """
    logits, values = _logits_and_values(graph, query, key, value, heads)
    scores = cast_to_float32(graph, logits)
    if bias is not None:
        scores = graph.op("Add", scores, bias)
    if causal:
        scores = _masked(graph, scores, causal_square(graph, query))
    weights = graph.op("Softmax", scores, axis=-1)  # [B, H, N, N] float32
    mixed = graph.op("MatMul", cast_to_graph(graph, weights), values)
    return _join_heads(graph, mixed, heads), weights


def _logits_and_values(
    graph: GraphBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads
) -> tuple[ir.Value, ir.Value]:
    """Scaled products of queries and keys ``[B, H, N, M]``, and values ``[B, H, M, hd]``."""
    scaled = graph.op("Mul", query, graph.scalar(heads.dim**-0.5))
    queries, keys, values = (
        graph.op("Transpose", split_heads(graph, x, heads.dim, heads.query), perm=order)
        for x, order in ((scaled, (0, 2, 1, 3)), (key, (0, 2, 3, 1)), (value, (0, 2, 1, 3)))
    )
    return graph.op("MatMul", queries, keys), values


def _masked(graph: GraphBuilder, scores: ir.Value, mask: ir.Value) -> ir.Value:
    """Float32 scores where the mask allows, the lowest number elsewhere."""
    if graph.target.attention_operator:
        return graph.op("Where", mask, scores, graph.constant(LOWEST, np.float32))
    return graph.op("Add", scores, cast_to_float32(graph, mask))


def full_attention(
    graph: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    heads: Heads,
    causal: bool = False,
    one_query: bool = False,
) -> ir.Value:
    """Attention of all tokens to all, or ``causal``: ``[I, T, H·hd]`` in and out.

    If not causal, keys and values may be of other tokens than the queries, and of another number.
    ``one_query``: there is never more than one query, for which TensorRT-RTX 1.7 does not always have a
    fused kernel; decomposed it costs nothing.
    """
    if graph.target.fused:
        return _multi_head(graph, query, key, value, heads, causal)
    if graph.target.attention_operator and not one_query:
        # No mask input: with one, TensorRT-RTX 1.7 has no fused attention of a single head.
        return graph.op(
            "Attention",
            query,
            key,
            value,
            q_num_heads=heads.query,
            kv_num_heads=heads.key_value,
            scale=heads.dim**-0.5,
            is_causal=int(causal),
        )
    mask = causal_square(graph, query) if causal else None
    scores, values = _logits_and_values(graph, query, key, value, heads)
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    weights = graph.op("Softmax", scores, axis=-1)
    return _join_heads(graph, graph.op("MatMul", weights, values), heads)


def _multi_head(
    graph: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    heads: Heads,
    causal: bool = False,
) -> ir.Value:
    return graph.op(
        "MultiHeadAttention",
        query,
        key,
        value,
        domain=MICROSOFT,
        num_heads=heads.query,
        scale=heads.dim**-0.5,
        unidirectional=1 if causal else None,
    )


def cross_keys(graph: GraphBuilder, x: ir.Value, heads: Heads) -> ir.Value:
    """Keys or values for ``cross_attention``: ``[B, M, H·hd] → [B, H, M, hd]``."""
    return graph.op("Transpose", split_heads(graph, x, heads.dim, heads.query), perm=(0, 2, 1, 3))


def cross_attention(
    graph: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    heads: Heads,
    one_query: bool = False,
) -> ir.Value:
    """Attention to keys and values that were computed before.

    Args:
        query: ``[B, N, H·hd]``.
        key, value: ``[B, H, M, hd]``, as ``cross_keys`` makes them.
        heads: as many key heads as query heads.
        one_query: as in ``full_attention``.

    Returns:
        ``[B, N, H·hd]``.
    """
    if graph.target.fused:
        return _multi_head(graph, query, key, value, heads)
    if graph.target.attention_operator and not one_query:
        queries = cross_keys(graph, query, heads)
        mixed = graph.op("Attention", queries, key, value, scale=heads.dim**-0.5)
        return _join_heads(graph, mixed, heads)
    queries = cross_keys(graph, graph.op("Mul", query, graph.scalar(heads.dim**-0.5)), heads)
    scores = graph.op("MatMul", queries, graph.op("Transpose", key, perm=(0, 1, 3, 2)))
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    return _join_heads(graph, mixed, heads)


def check_heads(graph: GraphBuilder, head_dim: int) -> None:
    """Refuse head sizes that the fused kernels do not support.

    Raises:
        CompExportError: names the flavour that supports them.
    """
    if graph.target.fused and head_dim % 8:
        raise CompExportError(
            f"head_dim {head_dim} is no multiple of 8, as GroupQueryAttention wants: "
            "export with --flavour standard"
        )


def _count(graph: GraphBuilder, start: ir.Value, end: ir.Value) -> ir.Value:
    """``start, …, end - 1``; both are ``[1]``."""
    axis = graph.constant([0])
    bounds = [graph.op("Squeeze", bound, axis) for bound in (start, end)]
    return graph.op("Range", *bounds, graph.constant(1))


def _causal_mask(graph: GraphBuilder, queries: ir.Value, total: ir.Value) -> ir.Value:
    """Mask of the ``total [1]`` keys that each query sees: those up to its own position ``[B, 1, N, 1]``."""
    keys = _count(graph, graph.constant([0]), total)
    if graph.target.attention_operator:
        return graph.op("LessOrEqual", keys, queries)
    lowest = graph.scalar(float(np.finfo(graph.target.numpy).min))
    return graph.op("Where", graph.op("Greater", keys, queries), lowest, graph.scalar(0.0))


def _at_least_two(graph: GraphBuilder, queries: ir.Value, heads: Heads) -> ir.Value:
    """Repeat a single query head: with a mask TensorRT-RTX 1.7 has no fused attention of one head."""
    return queries if heads.query > 1 else graph.op("Concat", queries, queries, axis=1)


def _of_heads(graph: GraphBuilder, mixed: ir.Value, heads: Heads) -> ir.Value:
    """Undo ``_at_least_two``: ``[B, H, N, hd]``."""
    if heads.query > 1:
        return mixed
    return graph.op("Slice", mixed, graph.constant([0]), graph.constant([1]), graph.constant([1]))


def _repeat(graph: GraphBuilder, x: ir.Value, heads: Heads) -> ir.Value:
    """``[B, Hkv, M, hd] → [B, H, M, hd]``: each KV head once for each query head it serves."""
    if heads.group == 1:
        return x
    length = axis_size(graph, x, 2)
    spread = graph.op("Unsqueeze", x, graph.constant([2]))
    batch = axis_size(graph, x, 0)
    wanted = graph.op(
        "Concat",
        batch,
        graph.constant([heads.key_value, heads.group]),
        length,
        graph.constant([heads.dim]),
        axis=0,
    )
    joined = graph.op(
        "Concat", batch, graph.constant([heads.query]), length, graph.constant([heads.dim]), axis=0
    )
    return graph.op("Reshape", graph.op("Expand", spread, wanted), joined)


def _join_heads(graph: GraphBuilder, x: ir.Value, heads: Heads) -> ir.Value:
    """``[B, H, N, hd] → [B, N, H·hd]``."""
    swapped = graph.op("Transpose", x, perm=(0, 2, 1, 3))
    return graph.op("Reshape", swapped, graph.constant([0, 0, heads.query * heads.dim]))
