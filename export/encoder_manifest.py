"""``manifest.json`` of a CLIP's or a BLIP's artifact: graphs of towers, texts and, in some, a decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from comp.plan import DropPlan
from export.manifest import Artifact, Frozen, Manifest


class TowerInfo(Frozen):
    """The vision tower: ``pixel_values [I, 3, S, S]`` in."""

    image_size: int = Field(ge=1)
    patch_size: int = Field(ge=1)
    tokens: int = Field(ge=1, description="patches and [CLS]")


class TextInfo(Frozen):
    """The text encoder, or the decoder where there is no other."""

    max_position_embeddings: int = Field(ge=1, description="tokens of the longest text")
    hidden_size: int = Field(ge=1)


class DecoderInfo(Frozen):
    """A BLIP's text decoder: what its caches look like, and how a text begins and ends."""

    head_dim: int = Field(ge=1)
    num_attention_heads: tuple[int, ...] = Field(description="of each layer's self-attention")
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


@dataclass(frozen=True)
class EncoderArtifact(Artifact):
    """The files of a CLIP's or a BLIP's artifact."""

    manifest: EncoderManifest

    def graph(self, name: str) -> Path:
        """The file of a graph, such as ``vision_model``."""
        return self.path / f"{name}.onnx"
