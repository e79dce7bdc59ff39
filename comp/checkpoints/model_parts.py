"""Parts of a vision-language model, as the configuration of each family writes them.

Configurations on the hub omit values that equal the defaults of their classes, so that those defaults are
repeated here (a test compares them with transformers).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comp.checkpoints.connector_shape import ConnectorShape
from comp.checkpoints.decoder_shape import decoder_fields
from comp.checkpoints.shapes import CHANNELS
from comp.checkpoints.tower_shape import TowerKind, tower_kind
from comp.errors import CompExportError

LLAVA_TOWERS = ("clip_vision_model", "siglip_vision_model")
# LlavaConfig's values if the whole vision_config is missing.
LLAVA_TOWER: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SCALE_FACTOR = 2  # of Idefics3Config and SmolVLMConfig
DOWNSAMPLE_RATIO = 0.5  # of InternVLConfig
# Values of InternVLVisionConfig that are supported.
INTERNVIT_ALONE: Mapping[str, Any] = {
    "norm_type": "layer_norm",
    "use_qk_norm": False,
    "use_mean_pooling": True,
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
}


@dataclass(frozen=True)
class ModelParts:
    """The parts of a model, dense sizes.

    Attributes:
        vision: fields of ``vision_config``, with the defaults of its class.
        text: ``text_config`` as it is.
        tower: kind of the image tower.
        connector: what maps the tower's features to the width of the decoder.
        feature_layers: tower blocks before each hidden state that is a feature.
        keeps_class_token: whether [CLS] is one of an image's tokens.
        final_norm: whether the features are normalised after the last block.
        image_token_id: the token that stands for an image.
        projector_act: activation between the connector's layers.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    tower: TowerKind
    connector: ConnectorShape
    feature_layers: tuple[int, ...]
    image_token_id: int
    keeps_class_token: bool = False
    final_norm: bool = False
    projector_act: str = "gelu"


def llava_parts(config: Mapping[str, Any], where: str) -> ModelParts:
    """Return the parts of a ``LlavaForConditionalGeneration``.

    Raises:
        CompExportError: a part is not supported; ``where`` names the file.
    """
    given = config.get("vision_config")
    vision = LLAVA_TOWER if given is None else _given(given)
    tower = tower_kind(vision, "clip_vision_model", LLAVA_TOWERS, where)
    vision = {**tower.defaults, "num_channels": CHANNELS, **vision}
    text = config.get("text_config") or {}
    width = decoder_fields(text, where)["hidden_size"]
    features = _feature_layers(config, vision["num_hidden_layers"], where)
    return ModelParts(
        vision=vision,
        text=text,
        tower=tower,
        connector=ConnectorShape(
            in_features=len(features) * vision["hidden_size"],
            out_features=width,
            bias=bool(config.get("multimodal_projector_bias", True)),
        ),
        feature_layers=features,
        image_token_id=config.get("image_token_index", config.get("image_token_id", 32000)),
        keeps_class_token=_keeps_class_token(config, tower, where),
        projector_act=config.get("projector_hidden_act") or "gelu",
    )


def idefics3_parts(config: Mapping[str, Any], where: str) -> ModelParts:
    """Return the parts of an ``Idefics3ForConditionalGeneration`` or a ``SmolVLMForConditionalGeneration``.

    Raises:
        CompExportError: a part is not supported; ``where`` names the file.
    """
    family = str(config.get("model_type")).removeprefix("comp_")
    vision = _given(config.get("vision_config") or {})
    tower = tower_kind(vision, f"{family}_vision", (f"{family}_vision",), where)
    vision = {**tower.defaults, "num_channels": CHANNELS, **vision}
    text = config.get("text_config") or {}
    width = decoder_fields(text, where)["hidden_size"]
    shuffle = config.get("scale_factor") or SCALE_FACTOR
    side = _side(vision)
    if side is not None and side % shuffle:
        raise CompExportError(
            f"{where}: scale_factor {shuffle} does not divide the {side} patches of a side of an "
            "image: fix config.json, or fetch the checkpoint again"
        )
    return ModelParts(
        vision=vision,
        text=text,
        tower=tower,
        connector=ConnectorShape(
            in_features=vision["hidden_size"],
            out_features=width,
            layers=("modality_projection.proj",),
            bias=False,
            shuffle=shuffle,
        ),
        feature_layers=(vision["num_hidden_layers"],),
        image_token_id=config.get("image_token_id", 128257),
        final_norm=True,
    )


def internvl_parts(config: Mapping[str, Any], where: str) -> ModelParts:
    """Return the parts of an ``InternVLForConditionalGeneration``.

    Raises:
        CompExportError: a part is not supported; ``where`` names the file.
    """
    vision = _given(config.get("vision_config") or {})
    tower = tower_kind(vision, "internvl_vision", ("internvl_vision",), where)
    vision = {**tower.defaults, "num_channels": CHANNELS, **vision}
    for name in ("image_size", "patch_size"):  # transformers writes both edges
        edges = vision[name]
        if isinstance(edges, list | tuple) and len(set(edges)) == 1:
            vision[name] = edges[0]
    for name, value in INTERNVIT_ALONE.items():
        if vision.get(name, value) != value:
            raise CompExportError(
                f"{where}: vision_config.{name} is {vision[name]!r}, and only {value!r} is supported: pass "
                "--model of an InternVL with the tower of 300 million parameters"
            )
    text = config.get("text_config") or {}
    width = decoder_fields(text, where)["hidden_size"]
    ratio = config.get("downsample_ratio") or DOWNSAMPLE_RATIO
    shuffle, side = int(1 / ratio), _side(vision)
    if shuffle * ratio != 1 or (side is not None and side % shuffle):
        raise CompExportError(
            f"{where}: downsample_ratio {ratio} of {side} patches of a side of an image: fix config.json, or "
            "fetch the checkpoint again"
        )
    strategy = config.get("vision_feature_select_strategy") or "default"
    if strategy != "default":
        raise CompExportError(
            f"{where}: vision_feature_select_strategy is {strategy!r}, and [CLS] has no neighbours to be "
            "joined with: write 'default'"
        )
    features = _feature_layers(config, vision["num_hidden_layers"], where, -1)
    if len(features) > 1:
        raise CompExportError(
            f"{where}: vision_feature_layer {config['vision_feature_layer']}: an InternVL has one feature "
            "layer; fix config.json"
        )
    return ModelParts(
        vision=vision,
        text=text,
        tower=tower,
        connector=ConnectorShape(
            in_features=vision["hidden_size"], out_features=width, norm=True, shuffle=shuffle
        ),
        feature_layers=features,
        image_token_id=config.get("image_token_id", 151667),
        projector_act=config.get("projector_hidden_act") or "gelu",
    )


PARTS_OF: Mapping[str, Callable[[Mapping[str, Any], str], ModelParts]] = {
    "llava": llava_parts,
    "smolvlm": idefics3_parts,
    "idefics3": idefics3_parts,
    "internvl": internvl_parts,
}
"""Reads the parts of a configuration, by name of the family; the second argument names the file."""


def _side(vision: Mapping[str, Any]) -> int | None:
    """Patches of a side of an image; ``None`` if it is no square."""
    size, patch = vision["image_size"], vision["patch_size"]
    if not isinstance(size, int) or not isinstance(patch, int):
        return None
    return size // patch


def _feature_layers(
    config: Mapping[str, Any], layers: int, where: str, default: int = -2
) -> tuple[int, ...]:
    """Return the tower blocks before each hidden state that is a feature."""
    field = config.get("vision_feature_layer", default)
    wanted = [field] if isinstance(field, int) else list(field)
    passed = tuple(layer if layer >= 0 else layers + 1 + layer for layer in wanted)
    if not passed or not all(0 <= layer <= layers for layer in passed):
        raise CompExportError(
            f"{where}: vision_feature_layer {field} of a tower of {layers} layers: fix config.json"
        )
    return passed


def _keeps_class_token(config: Mapping[str, Any], tower: TowerKind, where: str) -> bool:
    """Whether [CLS] is one of an image's tokens."""
    name = "vision_feature_select_strategy"
    strategy = config.get(name, "default")
    if not tower.class_token and strategy != "full":
        raise CompExportError(
            f"{where}: {name} is {strategy!r}, which leaves out the first token of an image, and the image "
            "tower has no [CLS]: write 'full'"
        )
    return tower.class_token and strategy == "full"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
