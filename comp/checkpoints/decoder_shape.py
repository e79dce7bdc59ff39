"""Read the sizes of the decoder of a vision-language model from its ``text_config``.

Missing fields have the defaults of transformers' configuration classes (a test compares them).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comp.checkpoints.pruning_entry import PartSizes
from comp.checkpoints.shapes import BlockSize, DecoderShape, cut_blocks
from comp.checkpoints.tensor_names import with_bias
from comp.errors import CompExportError

LANGUAGE = "model.language_model"  # canonical name (``comp.checkpoints.tensor_names``)
_LLAMA: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_MISTRAL: Mapping[str, Any] = {
    **_LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_QWEN: Mapping[str, Any] = {
    **_LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
WINDOW = 4096  # ``sliding_window`` of the classes that have one
WINDOWED_FROM = 28  # ``max_window_layers`` of Qwen2Config and Qwen3Config


@dataclass(frozen=True)
class DecoderKind:
    """A class of decoders: the defaults of its configuration, and what differs between classes.

    Attributes:
        defaults: sizes.
        qkv_bias: whether q, k and v always have biases, and the output none; otherwise ``attention_bias`` is
            read, where the class has that field.
        reads_bias: whether the class has ``attention_bias``.
        mlp_bias: whether the class has ``mlp_bias``.
        qk_norm: whether queries and keys of each head are normalised before the rotary embedding.
        window: ``always`` if ``sliding_window`` holds for all layers, ``asked`` if ``use_sliding_window``
            switches it on for the last ones.
    """

    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    reads_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: str = ""


DECODERS: Mapping[str, DecoderKind] = {
    "llama": DecoderKind(_LLAMA, reads_bias=True, mlp_bias=True),
    "mistral": DecoderKind(_MISTRAL, window="always"),
    "qwen2": DecoderKind(_QWEN, qkv_bias=True, window="asked"),
    "qwen3": DecoderKind({**_QWEN, "head_dim": 128}, reads_bias=True, qk_norm=True, window="asked"),
}


def decoder_kind(text: Mapping[str, Any], where: str) -> DecoderKind:
    """Return the kind of a ``text_config``; ``where`` names the file in errors.

    Raises:
        CompExportError: it is of another type.
    """
    kind = text.get("model_type") or "llama"
    if kind not in DECODERS:
        raise CompExportError(
            f"{where}: text_config.model_type is {kind!r}: not one of {', '.join(DECODERS)}; pass --model "
            "of a checkpoint with such a decoder"
        )
    return DECODERS[kind]


def decoder_fields(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a ``text_config`` with the defaults of its class.

    Raises:
        CompExportError: it is of another type.
    """
    given = {name: value for name, value in text.items() if value is not None}
    return {**decoder_kind(text, where).defaults, **given}


def decoder_shape(text: Mapping[str, Any], pruned: PartSizes, where: str) -> DecoderShape:
    """Return the sizes of a decoder; ``pruned`` are the recorded sizes of its blocks.

    Raises:
        CompExportError: it is of an unsupported type.
    """
    kind, fields = decoder_kind(text, where), decoder_fields(text, where)
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads", heads)
    biased = kind.reads_bias and bool(fields.get("attention_bias"))
    blocks = (BlockSize(kv_heads, fields["intermediate_size"]),) * fields["num_hidden_layers"]
    return DecoderShape(
        hidden_size=fields["hidden_size"],
        head_dim=fields.get("head_dim", fields["hidden_size"] // heads),
        group_size=heads // kv_heads,
        vocab_size=fields["vocab_size"],
        positions=_positions(text, kind, fields),
        qkv_bias=kind.qkv_bias or biased,
        output_bias=biased,
        mlp_bias=kind.mlp_bias and bool(fields.get("mlp_bias")),
        qk_norm=kind.qk_norm,
        blocks=cut_blocks(blocks, pruned.blocks),
    )


def _positions(text: Mapping[str, Any], kind: DecoderKind, fields: Mapping[str, Any]) -> int:
    """Return the most tokens of a prompt with its answer.

    A sliding window changes nothing as long as all tokens fit into it, and ends the positions.
    """
    longest: int = fields["max_position_embeddings"]
    window = text.get("sliding_window", WINDOW)  # null is none
    if window is None or not kind.window:
        return longest
    if kind.window == "asked":
        layers = text.get("layer_types")
        if layers is None:
            first = text.get("max_window_layers", WINDOWED_FROM)
            windowed = first < fields["num_hidden_layers"]
        else:
            windowed = "sliding_attention" in layers
        if not text.get("use_sliding_window") or not windowed:
            return longest
    return min(longest, int(window))


def decoder_tensors(decoder: DecoderShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield canonical names and shapes of the tensors of a decoder's blocks and of its last norm."""
    yield f"{LANGUAGE}.norm.weight", (decoder.hidden_size,)
    for number, block in enumerate(decoder.blocks):
        yield from _block(decoder, block, number)


def _block(
    decoder: DecoderShape, block: BlockSize, number: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name, d = f"{LANGUAGE}.layers.{number}", decoder.hidden_size
    key = block.heads * decoder.head_dim
    query, width = key * decoder.group_size, block.channels
    yield f"{name}.input_layernorm.weight", (d,)
    yield f"{name}.post_attention_layernorm.weight", (d,)
    for leaf, size in (("q_proj", (query, d)), ("k_proj", (key, d)), ("v_proj", (key, d))):
        yield from with_bias(f"{name}.self_attn.{leaf}", size, decoder.qkv_bias)
    yield from with_bias(f"{name}.self_attn.o_proj", (d, query), decoder.output_bias)
    if decoder.qk_norm:
        for leaf in ("q_norm", "k_norm"):
            yield f"{name}.self_attn.{leaf}.weight", (decoder.head_dim,)
    for leaf, size in (
        ("gate_proj", (width, d)),
        ("up_proj", (width, d)),
        ("down_proj", (d, width)),
    ):
        yield from with_bias(f"{name}.mlp.{leaf}", size, decoder.mlp_bias)
