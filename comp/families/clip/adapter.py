"""Adapt CLIP to pruning: image and text towers, compared by their embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, ProcessorMixin

from comp.adapter import (
    DistillationTargets,
    FamilyAdapter,
    Forwarding,
    Mode,
    Observer,
    Scored,
    TokenKind,
)
from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.pruning_entry import PruningEntry
from comp.checkpoints.slices import CLIP, cut_of
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.clip.forward import Embedded, embed_images, embed_texts
from comp.families.clip.slim import CompCLIPConfig, CompCLIPModel
from comp.families.encoder.adapter import (
    Shares,
    blocks_left,
    kept_shares,
    options_of,
    ratios_of,
    typical_workload,
)
from comp.families.encoder.forward import with_states
from comp.families.surgery import fill_slim
from comp.families.tokenizing import save_processor
from comp.flops.encoder import clip_macs
from comp.flops.token_drops import dropped_macs
from comp.masks import UNCUT, BlockKey, BlockShape, StructureCounts, completed
from comp.plan import DropPlan, Part, Place, PruningPlan, Workload

MODES = (
    Mode("vision_tokens", tokens="vision"),
    Mode("language_tokens", tokens="text"),
    Mode("vision_parameters", part="vision"),
    Mode("language_parameters", part="language"),
)
PARTS: tuple[Part, ...] = ("vision", "language")
KIND_OF: dict[Part, TokenKind] = {"vision": "vision", "language": "text"}


@dataclass(frozen=True)
class ClipBatch:
    """Images ``[B, C, S, S]`` with the text of each ``[B, L]``, with start and end tokens, padded."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "ClipBatch":
        return ClipBatch(*(t.to(device) for t in vars(self).values()))


class ClipAdapter(FamilyAdapter):
    """Adapter of a loaded CLIP, dense or slim.

    A batch's texts are candidates for its images, and the other way round: ``Scored.correct`` has an
    entry for each image and one for each text. Tokens may be dropped in every block but the last one, of
    which only one token is read.
    """

    name = "clip"
    task = "retrieval"
    lora_targets = r".*encoder\.layers.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    modes = MODES
    default_modes = tuple(mode.name for mode in MODES)

    def __init__(
        self,
        model: CLIPModel,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.processor = processor
        self.stored_dtype = stored_dtype
        self.shape = EncoderShape.from_config(model.config.to_dict() | {"model_type": "clip"})
        self.blocks = tuple(block for part in PARTS for block in _blocks(part, _tower(model, part)))
        self.drop_places: dict[Place, tuple[TokenKind, ...]] = {
            (part, number): (KIND_OF[part],)
            for part in PARTS
            for number in range(1, len(_tower(model, part).encoder.layers))
        }

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def collate(self, examples: Sequence[Example]) -> ClipBatch:
        """Return a batch of images with their captions, the answers of the examples.

        Raises:
            CompExportError: a caption longer than the model's positions.
        """
        images = self.processor.image_processor([example.image for example in examples])
        pixels = np.stack([np.asarray(each, np.float32) for each in images["pixel_values"]])
        texts = self.processor.tokenizer([example.answer for example in examples], padding=True)
        ids = torch.tensor(texts["input_ids"])
        if ids.shape[1] > self.shape.text.positions:
            raise CompExportError(
                f"a caption of {ids.shape[1]} tokens is longer than the model's "
                f"{self.shape.text.positions} positions: shorten it"
            )
        return ClipBatch(torch.from_numpy(pixels), ids, torch.tensor(texts["attention_mask"]))

    def score(
        self, batch: ClipBatch, forwarding: Forwarding, observer: Observer | None = None
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
        loss = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
        correct = torch.cat([scores.argmax(1) == own, scores.argmax(0) == own])
        shares = kept_shares("vision", images.token_count, images.encoded.kept)
        shares |= kept_shares("language", texts.token_count, texts.encoded.kept)
        return Scored(loss, lambda: correct, shares, lambda: self._targets(scores, images, texts))

    def _targets(self, scores: Tensor, images: Embedded, texts: Embedded) -> DistillationTargets:
        """Distillation targets; the final norm, usually of the pooled token alone, is applied to all."""
        seen, read = images.encoded.tokens, texts.encoded.tokens
        seen = with_states(seen, self.model.vision_model.post_layernorm(seen.states))
        read = with_states(read, self.model.text_model.final_layer_norm(read.states))
        return DistillationTargets((scores, scores.T), (seen, read))

    def with_features(self, batch: ClipBatch, masks: object) -> ClipBatch:
        """Return the batch: tokens are dropped inside the towers, so that no features can be reused."""
        return batch.to(self.device)

    def workload(self, batches: Iterable[ClipBatch]) -> Workload:
        return typical_workload(batches, self.shape.vision.tokens)

    def macs(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        return sum(clip_macs(self._left(counts), on, ratios_of(shares)).values())

    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        return sum(dropped_macs(self._left(counts), on, drops).values())

    def _left(self, counts: StructureCounts) -> EncoderShape:
        """Sizes of the model with these heads and channels."""
        vision, text = self.shape.vision, self.shape.text
        return replace(
            self.shape,
            vision=replace(vision, blocks=blocks_left("vision", vision.blocks, counts)),
            text=replace(text, blocks=blocks_left("language", text.blocks, counts)),
        )

    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear]:
        part, number = key
        layer = _tower(self.model, part).encoder.layers[number]
        return layer.self_attn.out_proj, layer.mlp.fc2

    def train_parts(self, parts: set[Part]) -> None:
        """Train both towers, whatever the parts: their embeddings are compared with each other."""
        del parts
        self.model.requires_grad_(requires_grad=True)

    def cut(self, plan: PruningPlan) -> "ClipAdapter":
        plan = completed(plan, self.blocks)
        settings = self.model.config.to_dict() | {"pruning": PruningEntry.of_plan(plan).to_json()}
        settings.pop("model_type", None)
        with torch.device("meta"):
            slim = CompCLIPModel(CompCLIPConfig(**settings))
        head_dim = {"vision": self.shape.vision.head_dim, "language": self.shape.text.head_dim}
        fill_slim(slim, self.model, lambda name: cut_of(name, plan, head_dim, CLIP))
        return ClipAdapter(slim.eval(), self.processor, self.stored_dtype)

    def save(self, directory: Path) -> None:
        self.model.to(self.stored_dtype).save_pretrained(directory)
        self.model.float()
        save_processor(self.processor, directory)


def _tower(model: CLIPModel, part: Part) -> Any:
    return model.vision_model if part == "vision" else model.text_model


def _blocks(part: Part, tower: Any) -> list[BlockShape]:
    blocks = []
    for number, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        heads = attention.q_proj.out_features // attention.head_dim
        blocks.append(
            BlockShape(
                part,
                number,
                attention.out_proj.out_features,
                heads,
                heads,
                attention.head_dim,
                layer.mlp.fc1.out_features,
                gated=False,
            )
        )
    return blocks
