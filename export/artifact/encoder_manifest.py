"""``manifest.json`` of a CLIP or BLIP artifact: graphs of towers, texts and, for some tasks, a decoder."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from comp.plan import DropPlan, Part, Task, keep_count
from export.artifact.manifest import Artifact, Count, Frozen, Manifest, TokenId

LARGEST_SCALE = 1e30  # of cosines: scores are float32
GRAPHS: dict[tuple[str, Task], tuple[str, ...]] = {
    ("clip", "retrieval"): ("vision_model.onnx", "text_model.onnx"),
    ("blip", "question"): (
        "vision_model.onnx",
        "text_encoder.onnx",
        "cross_kv.onnx",
        "decoder_model.onnx",
    ),
    ("blip", "caption"): ("vision_model.onnx", "cross_kv.onnx", "decoder_model.onnx"),
    ("blip", "retrieval"): ("vision_model.onnx", "itm_model.onnx", "text_model.onnx"),
    ("blip", "statement"): ("vision_model.onnx", "text_encoder.onnx"),
}
"""Graphs of an artifact by family and task, in the order in which they are written."""


class TowerInfo(Frozen):
    """The vision tower: ``pixel_values [I, 3, S, S]`` in."""

    image_size: Count
    patch_size: Count
    tokens: Count = Field(description="patches and [CLS]")
    hidden_size: Count


class TextInfo(Frozen):
    """The text encoder, or the decoder where there is no other."""

    max_position_embeddings: Count = Field(description="tokens of the longest text")
    hidden_size: Count


class DecoderInfo(Frozen):
    """A BLIP text decoder: the shapes of its caches, and its first and last tokens."""

    head_dim: Count
    num_attention_heads: tuple[Count, ...] = Field(
        min_length=1, description="of each layer's self-attention"
    )
    num_cross_attention_heads: tuple[Count, ...] = Field(
        description="of each layer's cross-attention"
    )
    vocab_size: Count
    max_position_embeddings: Count
    bos_token_id: TokenId
    eos_token_id: TokenId

    @model_validator(mode="after")
    def _fits(self) -> "DecoderInfo":
        if len(self.num_cross_attention_heads) != len(self.num_attention_heads):
            raise ValueError(
                f"num_cross_attention_heads is of {len(self.num_cross_attention_heads)} layers, "
                f"num_attention_heads of {len(self.num_attention_heads)}"
            )
        if self.bos_token_id >= self.vocab_size:
            raise ValueError(
                f"bos_token_id {self.bos_token_id} is none of {self.vocab_size} tokens"
            )
        return self


class EncoderManifest(Manifest):
    """Manifest of a CLIP or a BLIP: the facts that its engine needs."""

    vision: TowerInfo
    text: TextInfo
    decoder: DecoderInfo | None = Field(None, description="of answers and captions")
    logit_scale: float | None = Field(
        None, gt=0, le=LARGEST_SCALE, description="what cosines are multiplied with (CLIP)"
    )
    end_of_text: TokenId | Literal["largest"] | None = Field(
        None, description="of a CLIP: which token is pooled; none: the last one"
    )
    drops: tuple[DropPlan, ...] = ()

    @model_validator(mode="after")
    def _has_its_parts(self) -> "EncoderManifest":
        if (self.family, self.task) not in GRAPHS:
            raise ValueError(f"task {self.task!r} is none of a {self.family}")
        for name, wanted in (
            ("decoder", self.task in ("question", "caption")),
            ("logit_scale", self.family == "clip"),
        ):
            if wanted and getattr(self, name) is None:
                raise ValueError(f"{name} is missing in a {self.family} of task {self.task!r}")
        return self

    @property
    def graphs(self) -> tuple[str, ...]:
        """See ``Manifest.graphs``."""
        return GRAPHS[self.family, self.task]

    @property
    def image_tokens(self) -> int:
        """Tokens of an image that remain after the vision tower."""
        return tokens_left(self.vision.tokens, "vision", self.drops)


def tokens_left(count: int, part: Part, drops: tuple[DropPlan, ...]) -> int:
    """Return how many of ``count`` tokens remain after all drops of a part (``vision`` or ``language``)."""
    for drop in sorted(drops, key=lambda drop: drop.after_layer):
        if drop.part == part:
            count = keep_count(count, drop.keep_ratio)
    return count


@dataclass(frozen=True)
class EncoderArtifact(Artifact):
    """The files of a CLIP's or a BLIP's artifact."""

    manifest: EncoderManifest
