"""Read the sizes of the image tower of a vision-language model from its ``vision_config``.

Missing fields have the defaults of transformers' configuration classes (a test compares them).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comp.checkpoints.encoder_shape import CLIP_VISION
from comp.checkpoints.pruning_entry import PartSizes
from comp.checkpoints.shapes import BlockSize, TowerShape, cut_blocks
from comp.checkpoints.tensor_names import with_bias
from comp.errors import CompExportError

LAYER_SCALES = ("lambda_1", "lambda_2")  # of attention and of the FFN
TOWER = "model.vision_tower"  # canonical name (``comp.checkpoints.tensor_names``)
SIGLIP_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
INTERNVL_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
IDEFICS3_VISION: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}


@dataclass(frozen=True)
class TowerKind:
    """A class of image towers: the defaults of its configuration, and what differs between classes.

    Attributes:
        defaults: sizes.
        act, layer_norm_eps: defaults of these fields.
        class_token: whether [CLS] comes before the patches.
        patch_bias: whether the embedding of patches has a bias.
        pre_norm: whether a norm precedes the blocks.
        layer_scale: whether the outputs of attention and FFN are multiplied by a vector each.
        has_head: whether a pooling head follows where ``vision_use_head`` does not forbid it; it is not run.
    """

    defaults: Mapping[str, Any]
    act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    class_token: bool = False
    patch_bias: bool = True
    pre_norm: bool = False
    layer_scale: bool = False
    has_head: bool = False


CLIP = TowerKind(
    CLIP_VISION,
    act="quick_gelu",
    layer_norm_eps=1e-5,
    class_token=True,
    patch_bias=False,
    pre_norm=True,
)
SIGLIP = TowerKind(SIGLIP_VISION, has_head=True)
IDEFICS3 = TowerKind(IDEFICS3_VISION)
INTERNVIT = TowerKind(INTERNVL_VISION, act="gelu", class_token=True, layer_scale=True)
TOWERS: Mapping[str, TowerKind] = {
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "idefics3_vision": IDEFICS3,
    "smolvlm_vision": IDEFICS3,
    "internvl_vision": INTERNVIT,
}


def tower_kind(
    vision: Mapping[str, Any], default: str, known: tuple[str, ...], where: str
) -> TowerKind:
    """Return the kind of a ``vision_config``.

    Args:
        vision: the configuration.
        default: ``model_type`` if it has none.
        known: the types that the family supports.
        where: names the file in errors.

    Raises:
        CompExportError: it has another type.
    """
    kind = vision.get("model_type") or default
    if kind not in known:
        raise CompExportError(
            f"{where}: vision_config.model_type is {kind!r}: not one of {', '.join(known)}; "
            "pass --model of a checkpoint with such an image tower"
        )
    return TOWERS[kind]


def tower_shape(
    vision: Mapping[str, Any],
    kind: TowerKind,
    pruned: PartSizes,
    where: str,
    final_norm: bool = False,
) -> TowerShape:
    """Return the sizes of a tower.

    Args:
        vision: ``vision_config``, with the defaults of its class.
        kind: its kind.
        pruned: recorded sizes of its first blocks, those that run.
        where: names the file in errors.
        final_norm: whether the norm after the last block is applied to the features.

    Raises:
        CompExportError: images are not squares.
    """
    for name in ("image_size", "patch_size"):
        if not isinstance(vision[name], int):
            raise CompExportError(
                f"{where}: vision_config.{name} is {vision[name]!r}, not a number: "
                "only square images are supported"
            )
    heads, channels = vision["num_attention_heads"], vision["intermediate_size"]
    blocks = (BlockSize(heads, channels),) * vision["num_hidden_layers"]
    recorded = pruned.blocks
    uses_head = kind.has_head and vision.get("vision_use_head", True)
    return TowerShape(
        hidden_size=vision["hidden_size"],
        head_dim=vision["hidden_size"] // heads,
        num_channels=vision["num_channels"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        blocks=cut_blocks(blocks[: len(recorded)], recorded) + blocks[len(recorded) :],
        class_token=kind.class_token,
        patch_bias=kind.patch_bias,
        pre_norm=kind.pre_norm,
        layer_scale=kind.layer_scale,
        qkv_bias=not kind.layer_scale or bool(vision.get("attention_bias", False)),
        final_norm=final_norm,
        pooling_channels=channels if uses_head else 0,
    )


def tower_tensors(tower: TowerShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield canonical names and shapes of the tensors that a tower of these blocks uses."""
    width = tower.hidden_size
    patches = f"{TOWER}.embeddings"
    axes = (1, 1) if tower.layer_scale else ()  # of [CLS] and positions in an InternViT
    if tower.class_token:
        yield f"{patches}.class_embedding", (*axes, width)
    kernel = (width, tower.num_channels, tower.patch_size, tower.patch_size)
    yield from with_bias(f"{patches}.patch_embedding", kernel, tower.patch_bias)
    yield f"{patches}.position_embedding.weight", (*axes[1:], tower.tokens, width)
    if tower.pre_norm:
        yield from with_bias(f"{TOWER}.pre_layrnorm", (width,))
    for number, block in enumerate(tower.blocks):
        yield from _block(tower, block, number)
    if tower.final_norm:
        yield from with_bias(f"{TOWER}.post_layernorm", (width,))


def _block(
    tower: TowerShape, block: BlockSize, number: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name, width = f"{TOWER}.encoder.layers.{number}", tower.hidden_size
    inner, channels = block.heads * tower.head_dim, block.channels
    for leaf in ("q_proj", "k_proj", "v_proj"):
        yield from with_bias(f"{name}.self_attn.{leaf}", (inner, width), tower.qkv_bias)
    yield from with_bias(f"{name}.self_attn.out_proj", (width, inner))
    yield from with_bias(f"{name}.mlp.fc1", (channels, width))
    yield from with_bias(f"{name}.mlp.fc2", (width, channels))
    for leaf in ("layer_norm1", "layer_norm2"):
        yield from with_bias(f"{name}.{leaf}", (width,))
    for leaf in LAYER_SCALES if tower.layer_scale else ():
        yield f"{name}.{leaf}", (width,)
