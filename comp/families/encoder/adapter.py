"""Base class of the adapters of CLIP and BLIP."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from comp.adapter import FamilyAdapter, Forwarding, KeptShare
from comp.checkpoints.encoder_shape import EncoderShape
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.encoder.forward import Encoded, EncoderOptions
from comp.families.surgery import slim_model
from comp.families.tokenizing import save_processor
from comp.flops.encoder import request_macs
from comp.flops.token_drops import dropped_macs
from comp.masks import UNCUT, StructureCounts, completed
from comp.plan import DropPlan, Part, Place, PruningPlan, Workload

BatchT = TypeVar("BatchT", bound="EncoderBatch")
AdapterT = TypeVar("AdapterT", bound="EncoderAdapter")
Shares = Mapping[Place, tuple[float, float]]


@dataclass(frozen=True)
class EncoderBatch:
    """Images ``[I, C, S, S]`` with texts ``[B, L]``, with start and end tokens, padded."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def to(self: BatchT, device: torch.device) -> BatchT:
        return type(self)(*(t.to(device) for t in vars(self).values()))


class EncoderAdapter(FamilyAdapter):
    """Adapter of a loaded CLIP or BLIP, dense or slim.

    Attributes:
        architecture: class name of the dense model.
        slim_type: class of the slim model.
        images: number of images that a text is about.
        shape: sizes of the dense model.
    """

    architecture: ClassVar[str]
    slim_type: ClassVar[Any]
    images: ClassVar[int] = 1

    def __init__(
        self,
        model: Any,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.processor = processor
        self.stored_dtype = stored_dtype
        base = {"model_type": self.name, "architectures": [self.architecture]}
        self.shape = EncoderShape.from_config(model.config.to_dict() | base)

    @property
    def device(self) -> torch.device:
        return self.model.vision_model.post_layernorm.weight.device

    def with_features(self, batch: EncoderBatch, masks: object) -> EncoderBatch:
        """Return the batch: tokens are dropped inside the towers, so that no features can be reused."""
        return batch.to(self.device)

    def token_counts(self, batches: Iterable[EncoderBatch]) -> tuple[int, int, int]:
        """See ``FamilyAdapter``; a prompt is one request."""
        masks = [batch.attention_mask for batch in batches]
        tokens, rows = sum(int(mask.sum()) for mask in masks), sum(len(mask) for mask in masks)
        return rows * self.images * self.shape.vision.tokens, tokens, rows

    def macs(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """Multiply-accumulates of one request as it is served."""
        ratios = {
            place: vision if place[0] == "vision" else text
            for place, (vision, text) in shares.items()
        }
        return sum(request_macs(self._left(counts), on, ratios).values())

    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        return sum(dropped_macs(self._left(counts), on, drops).values())

    def _left(self, counts: StructureCounts) -> EncoderShape:
        """Sizes of the model with these heads and channels."""
        left, text, decoder = (counts.heads, counts.channels), self.shape.text, self.shape.decoder
        if decoder is not None:
            decoder = decoder.left("language", *left, first=len(text.blocks))
        return replace(
            self.shape,
            vision=self.shape.vision.left("vision", *left),
            text=text.left("language", *left),
            decoder=decoder,
        )

    def train_parts(self, parts: set[Part]) -> None:
        """Train all weights, whatever the parts: the other parts compensate for a pruned one."""
        del parts
        self.model.requires_grad_(requires_grad=True)

    def cut(self: AdapterT, plan: PruningPlan) -> AdapterT:
        plan = completed(plan, self.blocks)
        slim = slim_model(self.model, self.slim_type, plan, self.cuts(plan))
        return type(self)(slim.eval(), self.processor, self.stored_dtype)

    def save(self, directory: Path) -> None:
        self.model.to(self.stored_dtype).save_pretrained(directory)
        self.model.float()
        save_processor(self.processor, directory)

    def captioned(self, examples: Sequence[Example]) -> EncoderBatch:
        """Return a batch of images with their captions, the answers of the examples.

        Raises:
            CompExportError: a caption is longer than the model's positions.
        """
        texts = self.texts([example.answer for example in examples], "a caption")
        return EncoderBatch(self.pixels([example.image for example in examples]), *texts)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values of images, ``[I, C, S, S]``."""
        images = self.processor.image_processor(list(images))["pixel_values"]
        return torch.from_numpy(np.stack([np.asarray(each, np.float32) for each in images]))

    def texts(self, texts: Sequence[str], what: str) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask ``[B, L]`` of texts; ``what`` names them in errors.

        Raises:
            CompExportError: a text is longer than the model's positions.
        """
        tokens = self.processor.tokenizer(list(texts), padding=True)
        ids = torch.tensor(tokens["input_ids"])
        if ids.shape[1] > self.shape.text.positions:
            raise CompExportError(
                f"{what} of {ids.shape[1]} tokens is longer than the model's "
                f"{self.shape.text.positions} positions: shorten it"
            )
        return ids, torch.tensor(tokens["attention_mask"])


def contrast(scores: Tensor) -> Tensor:
    """Contrastive loss of ``scores [B, B]`` both ways; pairs are on the diagonal."""
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def options_of(forwarding: Forwarding, part: Part) -> EncoderOptions:
    """Options of an encoder for one part of a forward pass."""
    rules = {layer: rule for (of, layer), rule in (forwarding.rules or {}).items() if of == part}
    return EncoderOptions(forwarding.masks, rules, forwarding.calibrated)


def kept_shares(part: Part, *passes: Encoded) -> dict[Place, KeptShare]:
    """Numbers of tokens before and after each place of a part, of its one kind, summed over its passes."""
    shares: dict[Place, KeptShare] = {}
    count = sum(int((each.entered > 0).sum()) for each in passes)
    for layer in sorted(passes[0].kept):
        stayed = sum(int((each.kept[layer].alive > 0).sum()) for each in passes)
        counts = (count, stayed, 0, 0) if part == "vision" else (0, 0, count, stayed)
        shares[part, layer] = KeptShare(*counts)
        count = stayed
    return shares
