"""Fields of ``config.json`` that are read, with bounds that reject damaged values.

``llava_shape`` and ``encoder_shape`` define the defaults of missing fields; defaults here only pass
validation. As in transformers, ``null`` is not a number. Other fields are ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from comp.checkpoints.pruning_entry import WIDEST, PruningEntry, Width
from comp.errors import CompExportError
from comp.utils.versioned_json import first_wrong

MOST, DEEPEST = 2**24, 1000
Number = Annotated[int, Field(strict=True, ge=1, le=MOST)]  # of words
Depth = Annotated[int, Field(strict=True, ge=0, le=DEEPEST)]  # of blocks
TokenId = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, lt=1e12)]
Layer = Annotated[int, Field(strict=True, ge=-DEEPEST, le=DEEPEST)]
FLOAT_NAMES = Literal["float32", "float16", "bfloat16"]


def _square(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    if isinstance(value, list | dict):
        raise ValueError(f"{value} is not a number: only square images are supported")
    return value


Pixels = Annotated[Width, BeforeValidator(_square)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class _Blocks(_Read):
    """A stack of Transformer blocks."""

    model_type: str | None = None
    hidden_size: Width = 1
    intermediate_size: Width = 1
    num_hidden_layers: Depth = 0
    num_attention_heads: Width = 1
    hidden_act: str = ""
    layer_norm_eps: Positive | None = None

    def _divides(self, part: str, whole: str) -> None:
        """Refuse a count that does not divide another, where both are given."""
        count, total = getattr(self, part), getattr(self, whole)
        if {part, whole} <= self.model_fields_set and count is not None and total % count:
            raise ValueError(f"{part} {count} does not divide {whole} {total}")


class VisionFields(_Blocks):
    """``vision_config`` of each family."""

    image_size: Pixels = WIDEST
    patch_size: Pixels = 1
    num_channels: Width = 1

    @model_validator(mode="after")
    def _has_whole_heads(self) -> "VisionFields":
        self._divides("num_attention_heads", "hidden_size")
        return self

    @model_validator(mode="after")
    def _has_patches(self) -> "VisionFields":
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} has no patch of {self.patch_size}")
        return self


class RopeFields(_Read):
    """Rotary embedding, in both spellings of its kind."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Number | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    partial_rotary_factor: Positive | None = None


class TextFields(_Blocks):
    """``text_config`` of each family: a Llama, or the text model of a CLIP or a BLIP."""

    vocab_size: Number = 1
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    max_position_embeddings: Number = 1
    rms_norm_eps: Positive = 1
    rope_theta: Positive | None = None
    rope_parameters: RopeFields | None = None
    rope_scaling: RopeFields | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: Number | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Depth | None = None
    layer_types: list[str] | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: int | None = None
    sep_token_id: TokenId | None = None

    @model_validator(mode="after")
    def _has_whole_heads(self) -> "TextFields":
        if self.head_dim is None:
            self._divides("num_attention_heads", "hidden_size")
        self._divides("num_key_value_heads", "num_attention_heads")
        return self


class ConfigFields(_Read):
    """The whole of ``config.json``."""

    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    text_config: TextFields
    vision_config: VisionFields
    dtype: FLOAT_NAMES | None = None
    torch_dtype: FLOAT_NAMES | None = None
    tie_word_embeddings: bool | None = None
    image_token_index: TokenId | None = None
    image_token_id: TokenId | None = None
    projector_hidden_act: str = ""
    downsample_ratio: Annotated[float, Field(gt=0.01, le=1)] | None = None
    scale_factor: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    vision_feature_layer: Layer | Annotated[list[Layer], Field(min_length=1)] = 0
    vision_feature_select_strategy: str = ""
    multimodal_projector_bias: bool | None = None
    projection_dim: Width = 1
    image_text_hidden_size: Width = 1
    merge_from_layer: Depth = 0
    logit_scale_init_value: float = 1.0
    pruning: PruningEntry | None = None


def check_fields(config: dict[str, Any], where: str) -> None:
    """Refuse a configuration with an invalid field; ``where`` names the file in errors.

    Raises:
        CompExportError: names the first invalid field.
    """
    try:
        ConfigFields.model_validate(config)
    except ValidationError as error:
        raise CompExportError(
            f"{where}: {first_wrong(error)}; fix config.json, or fetch the checkpoint again"
        ) from error
