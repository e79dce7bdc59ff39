"""List the tensors of a LLaVA, and check that a checkpoint's files have them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.shapes import BlockSize, LlamaShape, TowerShape
from comp.checkpoints.tensor_names import canonical_name
from comp.checkpoints.tying import EMBEDDING, LM_HEAD, stand_ins
from comp.checkpoints.weight_files import FLOATS, StoredTensor, stored_tensors
from comp.errors import CompExportError

LANGUAGE, TOWER = "model.language_model", "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"
# Names of packed weights in GPTQ, AWQ, bitsandbytes, compressed-tensors and 8-bit floats.
PACKED = ("qweight", "qzeros", "SCB", "weight_packed", "weight_scale", "weight_scale_inv", "absmax")


def check_llava(directory: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the tensors in a LLaVA's files by canonical name, after checking that none is missing.

    Raises:
        CompExportError: a tensor is missing, contradicts ``config.json`` in its shape, or has an
            unsupported data type; or files are damaged.
    """
    shape = ModelShape.from_config(config, str(directory))
    tensors = {canonical_name(name): each for name, each in stored_tensors(directory).items()}
    others = stand_ins(config)
    for name, size in tensors_of(shape):
        tensor = tensors.get(name) or tensors.get(others.get(name, ""))
        if tensor is None:
            raise _missing(directory, name, tensors)
        if tensor.code not in FLOATS:
            raise no_float(tensor, name)
        if tensor.shape != size:
            raise CompExportError(
                f"{tensor.file}: {name} is {list(tensor.shape)}, and config.json says "
                f"{list(size)}: take both files from the same checkpoint"
            )
    return tensors


def no_float(tensor: StoredTensor, name: str) -> CompExportError:
    """Return the error for a tensor of an unsupported data type."""
    remedy = "pass an unquantised checkpoint with --model"
    if tensor.code == "F64":
        remedy = "save the model in float32"
    return CompExportError(
        f"{tensor.file}: {name} is {tensor.code}: only float32, float16 and bfloat16 weights are "
        f"read; {remedy}"
    )


def tensors_of(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield canonical names and shapes of the tensors that the model uses, block by block.

    Tower blocks after the last feature layer are left out, and so is the tower's last norm.
    """
    text, tower = shape.text, shape.used_tower
    d, v = text.hidden_size, tower.hidden_size
    yield EMBEDDING, (text.vocab_size, d)
    yield LM_HEAD, (text.vocab_size, d)
    yield f"{LANGUAGE}.norm.weight", (d,)
    for number, block in enumerate(text.blocks):
        yield from _decoder_block(text, block, number)
    patches = f"{TOWER}.embeddings"
    yield f"{patches}.class_embedding", (v,)
    kernel = (v, tower.num_channels, tower.patch_size, tower.patch_size)
    yield f"{patches}.patch_embedding.weight", kernel
    yield f"{patches}.position_embedding.weight", (tower.tokens, v)
    yield from _with_bias(f"{TOWER}.pre_layrnorm", (v,))
    for number, block in enumerate(tower.blocks):
        yield from _tower_block(tower, block, number)
    features = shape.feature_layers * v
    yield from _with_bias(f"{PROJECTOR}.linear_1", (d, features), shape.projector_bias)
    yield from _with_bias(f"{PROJECTOR}.linear_2", (d, d), shape.projector_bias)


def _decoder_block(
    text: LlamaShape, block: BlockSize, number: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name, d = f"{LANGUAGE}.layers.{number}", text.hidden_size
    key = block.heads * text.head_dim
    query, width = key * text.group_size, block.channels
    yield f"{name}.input_layernorm.weight", (d,)
    yield f"{name}.post_attention_layernorm.weight", (d,)
    for leaf, size in (
        ("q_proj", (query, d)),
        ("k_proj", (key, d)),
        ("v_proj", (key, d)),
        ("o_proj", (d, query)),
    ):
        yield from _with_bias(f"{name}.self_attn.{leaf}", size, text.attention_bias)
    for leaf, size in (
        ("gate_proj", (width, d)),
        ("up_proj", (width, d)),
        ("down_proj", (d, width)),
    ):
        yield from _with_bias(f"{name}.mlp.{leaf}", size, text.mlp_bias)


def _tower_block(
    tower: TowerShape, block: BlockSize, number: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name, v = f"{TOWER}.encoder.layers.{number}", tower.hidden_size
    inner, width = block.heads * tower.head_dim, block.channels
    for leaf in ("q_proj", "k_proj", "v_proj"):
        yield from _with_bias(f"{name}.self_attn.{leaf}", (inner, v))
    yield from _with_bias(f"{name}.self_attn.out_proj", (v, inner))
    yield from _with_bias(f"{name}.mlp.fc1", (width, v))
    yield from _with_bias(f"{name}.mlp.fc2", (v, width))
    for leaf in ("layer_norm1", "layer_norm2"):
        yield from _with_bias(f"{name}.{leaf}", (v,))


def _with_bias(
    name: str, shape: tuple[int, ...], biased: bool = True
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    if biased:
        yield f"{name}.bias", shape[:1]


def _missing(directory: Path, name: str, names: Mapping[str, StoredTensor]) -> CompExportError:
    packed = next((each for each in names if each.rpartition(".")[2] in PACKED), None)
    if packed is not None:
        return CompExportError(
            f"{directory} has {packed} and no {name}: its weights are quantised; pass the unquantised "
            "checkpoint that they were made of"
        )
    return CompExportError(
        f"{directory} has no tensor {name}: not a whole checkpoint of its kind; download it again or "
        "pass another --model"
    )
