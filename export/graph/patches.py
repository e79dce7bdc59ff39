"""Embed an image for a vision tower: patches, class token and positions."""

import onnx_ir as ir

from comp.errors import CompExportError
from export.graph.builder import GraphBuilder
from export.graph.linear import axis_size, cast_to_graph, vector
from export.weights.checkpoint import WeightSource


def embed_patches(
    graph: GraphBuilder,
    weights: WeightSource,
    pixels: ir.Value,
    name: str,
    patch_size: int,
    positions: str,
    bias: bool = False,
    class_token: bool = True,
) -> ir.Value:
    """``pixels [I, C, S, S]`` float32 to states ``[I, N, D]``: the class token if there is one, then patches.

    Args:
        graph: where to build.
        weights: with ``name.patch_embedding``, ``name.class_embedding`` (of a class token) and positions.
        pixels: normalised pixels.
        name: name of the embeddings.
        patch_size: edge in pixels.
        positions: name of the positions within ``name``.
        bias: whether patches have one.
        class_token: whether the tower has a class token.
    """
    _check_kernel(weights, f"{name}.patch_embedding.weight", patch_size)
    kernel = vector(graph, weights, f"{name}.patch_embedding.weight")
    offset = vector(graph, weights, f"{name}.patch_embedding.bias") if bias else None
    width = weights.shape(f"{name}.patch_embedding.weight")[0]
    edge = [patch_size] * 2
    grid = graph.op(
        "Conv", cast_to_graph(graph, pixels), kernel, offset, kernel_shape=edge, strides=edge
    )
    flat = graph.op("Reshape", grid, graph.constant([0, width, -1]))
    patches = graph.op("Transpose", flat, perm=(0, 2, 1))
    if not class_token:
        return graph.op("Add", patches, vector(graph, weights, f"{name}.{positions}"))
    one_each = graph.op("Concat", axis_size(graph, pixels, 0), graph.constant([1, width]), axis=0)
    first = graph.op("Expand", vector(graph, weights, f"{name}.class_embedding"), one_each)
    states = graph.op("Concat", first, patches, axis=1)
    return graph.op("Add", states, vector(graph, weights, f"{name}.{positions}"))


def _check_kernel(weights: WeightSource, name: str, patch_size: int) -> None:
    """Check the patch size against the weights: with another one the graph would not run."""
    shape = weights.shape(name)
    if shape[-2:] != (patch_size, patch_size):
        raise CompExportError(
            f"{name} has the shape {list(shape)}, and config.json says patch_size {patch_size}: "
            "take both files from the same checkpoint"
        )
