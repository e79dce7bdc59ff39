"""Adapt LLaVA, SmolVLM and Idefics3 to pruning: image tower, connector, decoder."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ProcessorMixin

from comp.adapter import (
    DistillationTargets,
    FamilyAdapter,
    Forwarding,
    KeptShare,
    Mode,
    Observer,
    Scored,
    TokenKind,
)
from comp.checkpoints.slices import Cut, cut_of
from comp.checkpoints.tensor_names import canonical_name
from comp.data.example import Example
from comp.families.llava.batches import LlavaCollator, Narrowed, narrowed
from comp.families.llava.decoder import DecoderOptions, Kept, rules_by_layer
from comp.families.llava.forward import (
    IGNORE,
    LlavaBatch,
    LlavaOutput,
    config_selection,
    image_features,
    run_llava,
    used_feature_layers,
)
from comp.families.llava.parts import parts_of
from comp.families.llava.slim import CompLlavaForConditionalGeneration
from comp.families.llava.tower import tower_blocks
from comp.families.streamed import save_streamed, streamed_layers
from comp.families.surgery import slim_model
from comp.families.tokenizing import save_processor
from comp.flops.llava import ModelShape, llava_macs_of_counts, llava_macs_of_drops
from comp.masks import UNCUT, BlockKey, BlockShape, Masks, StructureCounts, completed
from comp.plan import DropPlan, ImageSelection, Part, Place, PruningPlan, Workload
from comp.tokens.state import TEXT, VISION, TokenState

MODES = (
    Mode("vision_tokens", tokens="vision"),
    Mode("language_tokens", tokens="text"),
    Mode("language_parameters", part="language"),
    Mode("vision_parameters", part="vision"),
)
DEFAULT_MODES = ("vision_tokens", "language_tokens", "language_parameters")


class LlavaAdapter(FamilyAdapter):
    """Adapter of a loaded model of image tower, connector and decoder, dense or slim.

    Weights are fp32 in memory and ``stored_dtype``, the checkpoint's own type, on disk. Batches have a place
    for every image token of the tower, also for those that ``selection`` (by default the config's) drops.
    """

    name = "llava"
    task = "question"
    slim_class: ClassVar[Any] = CompLlavaForConditionalGeneration
    lora_targets = (
        r".*(language_model|text_model).*"
        r"\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    )
    modes = MODES
    default_modes = DEFAULT_MODES

    def __init__(
        self,
        model: Any,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.selection = config_selection(model.config)
        self.processor = processor
        self.stored_dtype = stored_dtype
        self.collator = LlavaCollator(processor, model.config)
        self.shape = ModelShape.from_config(model.config.to_dict())
        self.blocks = _blocks(model)
        kinds: tuple[TokenKind, ...] = ("vision", "text")
        self.drop_places = {("language", place): kinds for place in self.shape.drop_layers}
        self._tower_frozen = True

    @property
    def device(self) -> torch.device:
        return parts_of(self.model).language.embed_tokens.weight.device

    def collate(self, examples: Sequence[Example]) -> LlavaBatch:
        return self.collator(examples)

    def score(
        self, batch: LlavaBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch, placed, output = self._run(batch, forwarding, observer)
        tokens = output.tokens
        labels = batch.labels.to(tokens.index.device).gather(1, tokens.index)
        labels = labels.masked_fill(tokens.alive <= 0, IGNORE)
        is_answer = labels != IGNORE
        logits = self.model.lm_head(tokens.states[is_answer]).float()  # [answer tokens, V]
        loss = F.cross_entropy(logits, labels[is_answer])
        right = torch.ones_like(is_answer)
        right[is_answer] = logits.argmax(-1) == labels[is_answer]
        shares = _shares(batch, output.kept)
        targets = DistillationTargets((logits,), (self._as_they_came(output, placed),))
        return Scored(loss, lambda: right.all(1), shares, lambda: targets, len(logits))

    def shares(self, batch: LlavaBatch, forwarding: Forwarding) -> dict[Place, KeptShare]:
        until = max((layer for _, layer in forwarding.rules or {}), default=0)
        batch, _, output = self._run(batch, forwarding, until=until)
        return _shares(batch, output.kept)

    def _run(
        self,
        batch: LlavaBatch,
        forwarding: Forwarding,
        observer: Observer | None = None,
        until: int | None = None,
    ) -> tuple[LlavaBatch, Narrowed | None, LlavaOutput]:
        """Run a batch; return the batch that was run, how it was narrowed, and the output."""
        batch = batch.to(self.device)
        placed = None
        if self.selection is not None:
            own = self.collator
            left = self.selection.count
            placed = narrowed(batch, own.image_token_id, own.image_tokens, left)
            batch = placed.batch
        options = DecoderOptions(
            forwarding.masks, rules_by_layer(forwarding.rules or {}), forwarding.calibrated
        )
        tower = self._tower_frozen and observer is None
        output = run_llava(
            self.model,
            batch,
            options,
            observer=observer,
            tower_masks=forwarding.masks,
            freeze_tower=tower,
            selection=self.selection,
            until=until,
        )
        return batch, placed, output

    def _as_they_came(self, output: LlavaOutput, placed: Narrowed | None) -> TokenState:
        """Final tokens with the indices that they have in a model without image selection."""
        tokens = output.tokens
        if placed is None or output.selected is None:
            return tokens
        origin = placed.origin_of(output.selected.places, self.collator.image_token_id)
        return replace(tokens, index=origin.to(tokens.index.device).gather(1, tokens.index))

    def selecting(self, selection: ImageSelection) -> "LlavaAdapter":
        """Return an adapter of the same model with this selection of image tokens."""
        other = copy(self)
        other.selection = selection
        return other

    def with_features(self, batch: LlavaBatch, masks: Masks | None) -> LlavaBatch:
        batch = batch.to(self.device)
        if self.selection is not None:
            return batch  # a batch cannot hold which tokens were selected
        features = image_features(self.model, batch.pixel_values, masks).states
        return replace(batch, features=features)

    def token_counts(self, batches: Iterable[LlavaBatch]) -> tuple[int, int, int]:
        vision, text, rows = 0, 0, 0
        for batch in batches:
            vision += int(((batch.kind == VISION) * batch.alive).sum())
            text += int(((batch.kind == TEXT) * batch.alive).sum())
            rows += len(batch.input_ids)
        return vision, text, rows

    def macs(
        self, counts: StructureCounts, shares: dict[Place, tuple[float, float]], on: Workload
    ) -> int:
        by_layer = {layer: share for (_, layer), share in shares.items()}
        return llava_macs_of_counts(self.shape, counts.heads, counts.channels, by_layer, on)

    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        return llava_macs_of_drops(self.shape, counts.heads, counts.channels, drops, on)

    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear]:
        part, number = key
        if part == "language":
            layer = parts_of(self.model).language.layers[number]
            return layer.self_attn.o_proj, layer.mlp.down_proj
        block = tower_blocks(parts_of(self.model).tower)[number]
        return block.output, block.layer.mlp.fc2

    @property
    def tower(self) -> nn.Module:
        return parts_of(self.model).tower

    def train_parts(self, parts: set[Part]) -> None:
        self._tower_frozen = "vision" not in parts
        if streamed := streamed_layers(self.model):
            # Streamed models are not trained; refitting changes these tensors, and a search saves them.
            parts_of(self.model).tower.requires_grad_("vision" in parts)
            for layer in streamed.values():
                layer.requires_grad_()  # its bias
            return
        self.model.requires_grad_(requires_grad=True)
        if self._tower_frozen:
            parts_of(self.model).tower.requires_grad_(requires_grad=False)

    def cuts(self, plan: PruningPlan) -> Callable[[str], Cut | None]:
        head_dim = {"language": self.shape.text.head_dim, "vision": self.shape.vision.head_dim}
        return lambda name: cut_of(canonical_name(name), plan, head_dim)

    def cut(self, plan: PruningPlan) -> "LlavaAdapter":
        plan = completed(plan, self.blocks)
        slim = slim_model(self.model, self.slim_class, plan, self.cuts(plan))
        slim.generation_config = self.model.generation_config
        processor = self.processor
        if plan.image_selection is not None:
            processor = copy(processor)
            # transformers expands <image> to one place for each patch and each additional token.
            left = plan.image_selection.count
            processor.num_additional_image_tokens += left - self.shape.tower_tokens
        return type(self)(slim, processor, self.stored_dtype)

    def save(self, directory: Path) -> None:
        save_processor(self.processor, directory)
        if streamed_layers(self.model):
            save_streamed(self.model, directory, self.stored_dtype)
            return
        self.model.to(self.stored_dtype).save_pretrained(directory)
        self.model.float()


def _blocks(model: Any) -> tuple[BlockShape, ...]:
    """Shapes of the language blocks and of the tower's used blocks."""
    config = model.config
    blocks = []
    for number, layer in enumerate(parts_of(model).language.layers):
        attention = layer.self_attn
        groups = attention.k_proj.out_features // attention.head_dim
        blocks.append(
            BlockShape(
                "language",
                number,
                config.text_config.hidden_size,
                groups * attention.num_key_value_groups,
                groups,
                attention.head_dim,
                layer.mlp.up_proj.out_features,
                gated=True,
            )
        )
    used = max(used_feature_layers(config))
    tower = tower_blocks(parts_of(model).tower)[:used]
    return (*blocks, *(block.shape("vision", number) for number, block in enumerate(tower)))


def _shares(batch: LlavaBatch, kept: dict[int, Kept]) -> dict[Place, KeptShare]:
    vision = int(((batch.kind == VISION) * (batch.alive > 0)).sum())
    text = int(((batch.kind == TEXT) * (batch.alive > 0)).sum())
    shares: dict[Place, KeptShare] = {}
    for place, what in sorted(kept.items()):
        vision_kept = int(((what.kind == VISION) & (what.alive > 0)).sum())
        text_kept = int(((what.kind == TEXT) & (what.alive > 0)).sum())
        shares["language", place] = KeptShare(vision, vision_kept, text, text_kept)
        vision, text = vision_kept, text_kept
    return shares
