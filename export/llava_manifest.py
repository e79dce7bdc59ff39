"""``manifest.json`` of a LLaVA's artifact: a vision encoder, an embedding and a decoder with caches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from comp.plan import DropPlan, ImageSelection
from export.manifest import Artifact, Frozen, Manifest

KEPT = "kept_image_tokens"  # output of a vision encoder: which tokens stay as they are


class DecoderShape(Frozen):
    """The decoder graph: what its caches look like and where tokens are dropped."""

    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    num_attention_heads: tuple[int, ...] = Field(description="query heads of each layer")
    num_key_value_heads: tuple[int, ...] = Field(
        description="key/value heads of each layer's cache"
    )
    intermediate_size: tuple[int, ...] = Field(description="FFN width of each layer")
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    drops: tuple[DropPlan, ...] = ()


class VisionShape(Frozen):
    """The vision encoder graph: ``pixel_values [I, C, S, S]`` in, ``image_tokens`` features out."""

    image_size: int = Field(ge=1)
    patch_size: int = Field(ge=1)
    num_channels: int = 3
    image_tokens: int = Field(ge=1, description="tokens an image becomes")
    select_strategy: Literal["default", "full"] = Field(
        "default", description="whether [CLS] is among the tokens (full: first) or not"
    )
    selection: ImageSelection | None = Field(
        default=None, description="what is left of the tower's tokens; none: all of them"
    )

    @property
    def tower_tokens(self) -> int:
        """Tokens of an image that the tower gives."""
        return (self.image_size // self.patch_size) ** 2 + (self.select_strategy == "full")


class SpecialTokens(Frozen):
    """Tokens the engine must know; a leading BOS comes from ``tokenizer.json`` when ``add_bos``."""

    image_token: str
    image_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    add_bos: bool


class LlavaManifest(Manifest):
    """What the engine needs to know of a LLaVA."""

    family: Literal["llava"]
    task: Literal["question"] = "question"
    decoder: DecoderShape
    vision: VisionShape
    tokens: SpecialTokens
    prompt_template: str = Field(description="the prompt of one image; replace '{prompt}'")

    @property
    def image(self) -> tuple[int, int]:
        """The token that stands for an image, and how many places an image takes."""
        return self.tokens.image_token_id, self.vision.image_tokens


@dataclass(frozen=True)
class LlavaArtifact(Artifact):
    """The files of a LLaVA's artifact."""

    manifest: LlavaManifest

    @property
    def vision_encoder(self) -> Path:
        return self.path / "vision_encoder.onnx"

    @property
    def embed_tokens(self) -> Path:
        return self.path / "embed_tokens.onnx"

    @property
    def decoder_model(self) -> Path:
        return self.path / "decoder_model.onnx"

    @property
    def decoder_in_place(self) -> Path:
        """The decoder with caches of fixed size; of the standard flavour only."""
        return self.path / "decoder_in_place.onnx"
