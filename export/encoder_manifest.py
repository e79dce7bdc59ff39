"""``manifest.json`` of a CLIP's or a BLIP's artifact: graphs of towers, texts and, in some, a decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from comp.plan import DropPlan, Part, keep_count
from export.manifest import Artifact, Frozen, Manifest

LARGEST_SCALE = 1e30  # of cosines: scores are float32


class TowerInfo(Frozen):
    """The vision tower: ``pixel_values [I, 3, S, S]`` in."""

    image_size: int = Field(ge=1)
    patch_size: int = Field(ge=1)
    tokens: int = Field(ge=1, description="patches and [CLS]")
    hidden_size: int = Field(ge=1)


class TextInfo(Frozen):
    """The text encoder, or the decoder where there is no other."""

    max_position_embeddings: int = Field(ge=1, description="tokens of the longest text")
    hidden_size: int = Field(ge=1)


class DecoderInfo(Frozen):
    """A BLIP's text decoder: what its caches look like, and how a text begins and ends."""

    head_dim: int = Field(ge=1)
    num_attention_heads: tuple[int, ...] = Field(description="of each layer's self-attention")
    num_cross_attention_heads: tuple[int, ...] = Field(
        description="of each layer's attention to what was read or seen"
    )
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    bos_token_id: int
    eos_token_id: int


class EncoderManifest(Manifest):
    """What the engine needs to know of a CLIP or a BLIP."""

    family: Literal["clip", "blip"]
    vision: TowerInfo
    text: TextInfo
    decoder: DecoderInfo | None = Field(None, description="of answers and captions")
    logit_scale: float | None = Field(
        None, description="what cosines are multiplied with (retrieval)"
    )
    drops: tuple[DropPlan, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Tokens of an image that are left behind the vision tower."""
        return tokens_left(self.vision.tokens, "vision", self.drops)


def tokens_left(count: int, part: Part, drops: tuple[DropPlan, ...]) -> int:
    """How many of ``count`` tokens every drop of a part leaves, ``vision`` or ``language``."""
    for drop in sorted(drops, key=lambda drop: drop.after_layer):
        if drop.part == part:
            ratio = drop.vision_keep_ratio if part == "vision" else drop.text_keep_ratio
            count = keep_count(count, ratio)
    return count


@dataclass(frozen=True)
class EncoderArtifact(Artifact):
    """The files of a CLIP's or a BLIP's artifact."""

    manifest: EncoderManifest

    def graph(self, name: str) -> Path:
        """The file of a graph, such as ``vision_model``."""
        return self.path / f"{name}.onnx"
