"""Adapt CLIP to pruning: image and text towers, compared by their embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, ProcessorMixin

from comp.adapter import DistillationTargets, Forwarding, Mode, Observer, Scored, TokenKind
from comp.checkpoints.slices import CLIP, Cut, cut_of
from comp.data.example import Example
from comp.families.clip.forward import Embedded, blocks_of, embed_images, embed_texts
from comp.families.clip.slim import CompCLIPModel
from comp.families.encoder.adapter import (
    EncoderAdapter,
    EncoderBatch,
    contrast,
    kept_shares,
    options_of,
)
from comp.families.encoder.forward import with_states
from comp.masks import BlockKey
from comp.plan import Part, Place, PruningPlan

MODES = (
    Mode("vision_tokens", tokens="vision"),
    Mode("language_tokens", tokens="text"),
    Mode("vision_parameters", part="vision"),
    Mode("language_parameters", part="language"),
)
KIND_OF: dict[Part, TokenKind] = {"vision": "vision", "language": "text"}


class ClipAdapter(EncoderAdapter):
    """Adapter of a loaded CLIP, dense or slim.

    A batch's texts are candidates for its images, and the other way round: ``Scored.correct`` has an
    entry for each image and one for each text. Tokens may be dropped in every block but the last one, of
    which only one token is read.
    """

    name = "clip"
    task = "retrieval"
    architecture = "CLIPModel"
    slim_type = CompCLIPModel
    lora_targets = r".*encoder\.layers.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    modes = MODES
    default_modes = tuple(mode.name for mode in MODES)

    def __init__(
        self,
        model: CLIPModel,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, processor, stored_dtype)
        blocks = {part: blocks_of(self._tower(part)) for part in KIND_OF}
        self.blocks = tuple(
            block.shape(part, number)
            for part, towers in blocks.items()
            for number, block in enumerate(towers)
        )
        self.drop_places: dict[Place, tuple[TokenKind, ...]] = {
            (part, number): (KIND_OF[part],)
            for part, tower in blocks.items()
            for number in range(1, len(tower))
        }

    def collate(self, examples: Sequence[Example]) -> EncoderBatch:
        return self.captioned(examples)

    def score(
        self, batch: EncoderBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch = batch.to(self.device)
        images = embed_images(
            self.model, batch.pixel_values, options_of(forwarding, "vision"), observer
        )
        texts = embed_texts(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            options_of(forwarding, "language"),
            observer,
        )
        scores = (images.embeds @ texts.embeds.T).float() * self.model.logit_scale.exp()
        own = torch.arange(len(scores), device=scores.device)
        correct = torch.cat([scores.argmax(1) == own, scores.argmax(0) == own])
        shares = kept_shares("vision", images.encoded) | kept_shares("language", texts.encoded)
        return Scored(
            contrast(scores),
            lambda: correct,
            shares,
            lambda: self._targets(scores, images, texts),
            len(scores),
        )

    def _targets(self, scores: Tensor, images: Embedded, texts: Embedded) -> DistillationTargets:
        """Distillation targets; the final norm, usually of the pooled token alone, is applied to all."""
        seen, read = images.encoded.tokens, texts.encoded.tokens
        seen = with_states(seen, self.model.vision_model.post_layernorm(seen.states))
        read = with_states(read, self.model.text_model.final_layer_norm(read.states))
        return DistillationTargets((scores, scores.T), (seen, read))

    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear]:
        part, number = key
        block = blocks_of(self._tower(part))[number]
        return block.output, block.layer.mlp.fc2

    def cuts(self, plan: PruningPlan) -> Callable[[str], Cut | None]:
        head_dim = {"vision": self.shape.vision.head_dim, "language": self.shape.text.head_dim}
        return lambda name: cut_of(name, plan, head_dim, CLIP)

    def _tower(self, part: Part) -> Any:
        return self.model.vision_model if part == "vision" else self.model.text_model
