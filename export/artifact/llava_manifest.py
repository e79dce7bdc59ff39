"""``manifest.json`` of a LLaVA artifact: a vision encoder, an embedding and a decoder with caches."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from comp.checkpoints.image_prompt import ImagePrompt
from comp.plan import DropPlan, ImageSelection
from export.artifact.manifest import (
    Artifact,
    Count,
    Flavour,
    Frozen,
    Manifest,
    Precision,
    TokenId,
    computed_in,
)

GRAPHS = ("vision_encoder.onnx", "embed_tokens.onnx", "decoder_model.onnx")
IN_PLACE = "decoder_in_place.onnx"  # the decoder that TensorRT compiles
KEPT = "kept_image_tokens"  # output of a vision encoder: which tokens stay as they are


class DecoderShape(Frozen):
    """The decoder graph: the shapes of its caches, and where tokens are dropped."""

    num_layers: Count
    hidden_size: Count
    head_dim: Count
    num_attention_heads: tuple[Count, ...] = Field(description="query heads of each layer")
    num_key_value_heads: tuple[Count, ...] = Field(
        description="key/value heads of each layer's cache"
    )
    intermediate_size: tuple[Count, ...] = Field(description="FFN width of each layer")
    vocab_size: Count
    max_position_embeddings: Count
    drops: tuple[DropPlan, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "DecoderShape":
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if len(getattr(self, name)) != self.num_layers:
                raise ValueError(
                    f"{name} is of {len(getattr(self, name))} layers, num_layers is {self.num_layers}"
                )
        places = [drop.after_layer for drop in self.drops]
        if places != sorted(set(places)) or any(place >= self.num_layers for place in places):
            raise ValueError(
                f"drops are after layers {places}: they must ascend, and end before {self.num_layers}"
            )
        return self


class VisionShape(Frozen):
    """The vision encoder graph: ``pixel_values [I, C, S, S]`` in, ``image_tokens`` features out.

    Of pictures that are cut into tiles, an image is a tile.
    """

    image_size: Count
    patch_size: Count
    num_channels: Count = 3
    image_tokens: Count = Field(description="tokens an image becomes")
    select_strategy: Literal["default", "full"] = Field(
        "default", description="whether [CLS] is among the tokens (full: first) or not"
    )
    shuffle: Count = Field(
        default=1,
        description="edge in patches of the squares that the connector joins to one token",
    )
    selection: ImageSelection | None = Field(
        default=None, description="what is left of the tower's tokens; none: all of them"
    )

    @property
    def tower_tokens(self) -> int:
        """Tokens of an image before any selection."""
        return (self.image_size // self.patch_size) ** 2 + (self.select_strategy == "full")

    @property
    def all_image_tokens(self) -> int:
        """Tokens of an image in the decoder without any selection."""
        return self.tower_tokens // self.shuffle**2


class SpecialTokens(Frozen):
    """Tokens the engine must know.

    ``add_bos``: whether ``tokenizer.json`` puts a BOS before a text.
    """

    image_token: str = Field(min_length=1)
    image_token_id: TokenId
    bos_token_id: TokenId | None
    eos_token_ids: tuple[TokenId, ...]
    pad_token_id: TokenId | None
    add_bos: bool


class ChatTemplate(Frozen):
    """The checkpoint's chat template (jinja2), rendered for each prompt."""

    source: str
    tokens: dict[str, str] = Field(description="special tokens that it may name")


def graphs_of(flavour: Flavour, precision: Precision) -> tuple[str, ...]:
    """File names of the graphs of an artifact; the decoder in place is for what TensorRT computes."""
    in_place = flavour == "standard" and computed_in(precision) == precision
    return (*GRAPHS, IN_PLACE) if in_place else GRAPHS


class LlavaManifest(Manifest):
    """Manifest of a LLaVA: the facts that its engine needs."""

    task: Literal["question"] = "question"
    decoder: DecoderShape
    vision: VisionShape
    tokens: SpecialTokens
    image_prompt: ImagePrompt | None = Field(
        default=None, description="words around a picture's tiles; none: its image token alone"
    )
    chat_template: ChatTemplate | None = Field(
        default=None, description="none in artifacts of before it was kept: see prompt_template"
    )
    prompt_template: str | None = Field(
        default=None, description="where there is no chat_template: of one image and '{prompt}'"
    )

    @property
    def graphs(self) -> tuple[str, ...]:
        """See ``Manifest.graphs``."""
        return graphs_of(self.flavour, self.precision)

    @property
    def image(self) -> tuple[int, int]:
        """The image token, and the number of positions an image takes."""
        return self.tokens.image_token_id, self.vision.image_tokens


@dataclass(frozen=True)
class LlavaArtifact(Artifact):
    """The files of a LLaVA's artifact."""

    manifest: LlavaManifest
