"""Build the graphs of a BLIP for each of its tasks.

All tasks have ``vision_model.onnx``. Question answering: ``text_encoder.onnx`` encodes the question,
``cross_kv.onnx`` computes the keys and values of the decoder's cross-attention once, and
``decoder_model.onnx`` generates the answer; captioning is the same without a question. Retrieval:
``text_model.onnx`` embeds texts, ``itm_model.onnx`` scores pairs of a text and an image. NLVR:
``text_encoder.onnx`` classifies a statement about two images.
"""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from comp.checkpoints.shapes import TextShape
from export.artifact.caches import CROSS, PAST, PRESENT
from export.artifact.encoder_manifest import GRAPHS
from export.artifact.encoder_ports import KINDS, STATES
from export.configs.blip import BlipShape
from export.families.blip.text_model import DECODER, ENCODER, TextModel
from export.graph.builder import GraphBuilder, Target
from export.graph.linear import activation, cast_to_float32, cast_to_graph, linear
from export.graph.norm import embed
from export.graph.patches import embed_patches
from export.graph.pre_norm_tower import PreNormTower, Projections
from export.graph.token_gather import first_row
from export.weights.checkpoint import WeightSource

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
VISION = "vision_model.onnx"
TEXT_ENCODER = "text_encoder.onnx"
CROSS_KV = "cross_kv.onnx"
DECODER_MODEL = "decoder_model.onnx"
ITM, TEXT = "itm_model.onnx", "text_model.onnx"


def build_blip_graphs(
    shape: BlipShape,
    weights: WeightSource,
    target: Target,
    directory: Path,
    written: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the task's graphs and their external data into ``directory``.

    Retrieval's two text graphs share their text weights, which are in the data file of the first one.

    Raises:
        CompExportError: a tensor is missing, or the flavour does not support the head size.
    """
    builders = {
        VISION: vision_model,
        TEXT_ENCODER: question_encoder if shape.task == "question" else statement_judge,
        CROSS_KV: cross_kv,
        DECODER_MODEL: decoder_model,
        ITM: itm_model,
        TEXT: text_model,
    }
    for name in GRAPHS["blip", shape.task]:
        shared = directory / ITM if name == TEXT else None
        builders[name](shape, weights, target).save(directory / name, weights_of=shared)
        written(name)


def vision_model(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``pixel_values [I, C, S, S] → last_hidden_state [I, K, D]``, both float32.

    For retrieval also ``image_embeds [I, P]`` of length 1. For each drop place ``kept.{m} [I, k]``:
    positions of the remaining tokens; [CLS] is 0.
    """
    graph = GraphBuilder("vision_model", target)
    tower = shape.sizes.vision
    pixels = graph.input("pixel_values", FLOAT, ("images", 3, tower.image_size, tower.image_size))
    with graph.scope("embeddings"):
        name, positions = "vision_model.embeddings", "position_embedding"
        states = embed_patches(graph, weights, pixels, name, tower.patch_size, positions, bias=True)
    blocks = PreNormTower(
        graph=graph,
        weights=weights,
        name="vision_model.encoder.layers",
        final="vision_model.post_layernorm",
        blocks=tower.blocks,
        head_dim=tower.head_dim,
        settings=shape.vision,
        drop=lambda layer: shape.drop("vision", layer),
        projections=Projections(("qkv",), "projection"),
    )
    states = blocks.states(states)
    if shape.task == "retrieval":
        pooled = first_row(graph, states)
        embed(
            graph, weights, pooled, "vision_proj", "image_embeds", shape.sizes.projection, bias=True
        )
    dims = ("images", shape.image_tokens, tower.hidden_size)
    graph.output("last_hidden_state", cast_to_float32(graph, states), FLOAT, dims)
    return graph


def question_encoder(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L]``, image states ``[T, K, D]`` → ``last_hidden_state [T, K', D]``, float32.

    As in every text graph, texts have one length without padding; for each drop place ``kept.{m} [T, k]``.
    """
    graph, model, ids = _text_graph("text_encoder", shape, weights, target)
    states = model.encode(ids, [_states(graph, shape, STATES)], only_first=False)
    dims = ("texts", "text_tokens", model.sizes.hidden_size)
    graph.output("last_hidden_state", cast_to_float32(graph, states), FLOAT, dims)
    return graph


def statement_judge(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L]``, states of two images ``[T, K, D]`` → ``logits [T, 2]``: false, true."""
    graph, model, ids = _text_graph("text_encoder", shape, weights, target)
    images = [_states(graph, shape, f"{STATES}.{number}") for number in (0, 1)]
    pooled = model.encode(ids, images, only_first=True)
    with graph.scope("head"):
        inner = activation(graph, linear(graph, weights, pooled, "cls_head.0", bias=True), "relu")
        _logits(graph, linear(graph, weights, inner, "cls_head.2", bias=True))
    return graph


def text_model(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L] → text_embeds [T, P]`` float32, of length 1; without cross-attention."""
    graph, model, ids = _text_graph("text_model", shape, weights, target)
    pooled = model.encode(ids, [], only_first=True)
    embed(graph, weights, pooled, "text_proj", "text_embeds", shape.sizes.projection, bias=True)
    return graph


def itm_model(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """``input_ids [T, L]``, image states ``[T, K, D]`` → ``logits [T, 2]``: no match, match."""
    graph, model, ids = _text_graph("itm_model", shape, weights, target)
    pooled = model.encode(ids, [_states(graph, shape, STATES)], only_first=True)
    with graph.scope("head"):
        _logits(graph, linear(graph, weights, pooled, "itm_head", bias=True))
    return graph


def cross_kv(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """States of a question or an image ``[B, M, D]`` float32 to cross-attention keys and values.

    ``cross.{l}.key`` and ``.value [B, H_l, M, hd]`` in the graph's precision, computed once for all steps.
    """
    graph = GraphBuilder("cross_kv", target)
    sizes = _decoder(shape)
    has_question = shape.encoder is not None
    width = sizes.hidden_size if has_question else shape.sizes.vision.hidden_size
    memory = graph.input(STATES, FLOAT, ("batch", _cross_tokens(shape), width))
    model = TextModel(graph, shape, weights, DECODER, sizes)
    for number, pair in enumerate(model.cross_kv(cast_to_graph(graph, memory))):
        for kind, value in zip(KINDS, pair, strict=True):
            graph.output(f"{CROSS}{number}.{kind}", value, target.dtype, _cross(shape, number))
    return graph


def decoder_model(shape: BlipShape, weights: WeightSource, target: Target) -> GraphBuilder:
    """The decoder, for prefill (empty past) and decode steps.

    Inputs ``input_ids [B, N]``, ``past_key_values.{l}.key`` and ``.value [B, H_l, P, hd]``,
    ``cross.{l}.key`` and ``.value [B, H'_l, M, hd]`` of ``cross_kv``. Outputs ``logits [B, 1, V]`` of the
    last token, float32, and ``present.{l}.key`` and ``.value [B, H_l, P + N, hd]``.
    """
    graph = GraphBuilder("decoder_model", target)
    sizes, dtype = _decoder(shape), target.dtype
    ids = graph.input("input_ids", INT64, ("batch", "sequence"))

    def pair(name: str, dims: tuple[int | str, ...]) -> tuple[ir.Value, ir.Value]:
        key, value = (graph.input(f"{name}.{kind}", dtype, dims) for kind in KINDS)
        return key, value

    def cache(number: int, length: str) -> tuple[int | str, ...]:
        return ("batch", sizes.blocks[number].heads, length, sizes.head_dim)

    layers = range(len(sizes.blocks))
    pasts = [pair(f"{PAST}{number}", cache(number, "past")) for number in layers]
    cross = [pair(f"{CROSS}{number}", _cross(shape, number)) for number in layers]
    model = TextModel(graph, shape, weights, DECODER, sizes)
    logits, presents = model.decode(ids, pasts, cross)
    dims = ("batch", 1, sizes.vocab_size)
    graph.output("logits", cast_to_float32(graph, logits), FLOAT, dims)
    for number, present in enumerate(presents):
        for kind, value in zip(KINDS, present, strict=True):
            graph.output(f"{PRESENT}{number}.{kind}", value, dtype, cache(number, "total"))
    return graph


def _text_graph(
    name: str, shape: BlipShape, weights: WeightSource, target: Target
) -> tuple[GraphBuilder, TextModel, ir.Value]:
    """A graph with the text encoder and its ``input_ids``."""
    graph = GraphBuilder(name, target)
    sizes = shape.encoder
    assert sizes is not None
    ids = graph.input("input_ids", INT64, ("texts", "length"))
    return graph, TextModel(graph, shape, weights, ENCODER, sizes), ids


def _states(graph: GraphBuilder, shape: BlipShape, name: str) -> ir.Value:
    """An input with states of images ``[T, K, D]``."""
    dims = ("texts", shape.image_tokens, shape.sizes.vision.hidden_size)
    return cast_to_graph(graph, graph.input(name, FLOAT, dims))


def _decoder(shape: BlipShape) -> TextShape:
    assert shape.decoder is not None
    return shape.decoder


def _cross_tokens(shape: BlipShape) -> int | str:
    """Number of tokens that the decoder attends to: of a question, or of an image after its drops."""
    return shape.image_tokens if shape.encoder is None else "cross_tokens"


def _cross(shape: BlipShape, number: int) -> tuple[int | str, ...]:
    sizes = _decoder(shape)
    return ("batch", sizes.blocks[number].cross_heads[0], _cross_tokens(shape), sizes.head_dim)


def _logits(graph: GraphBuilder, logits: ir.Value) -> None:
    """Declare the two logits ``[T, 1, 2]`` of a head."""
    flat = graph.op("Reshape", cast_to_float32(graph, logits), graph.constant([-1, 2]))
    graph.output("logits", flat, FLOAT, ("texts", 2))
