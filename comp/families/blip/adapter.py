"""Adapt BLIP to pruning: the base class of the adapters of its four tasks."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from comp.adapter import FamilyAdapter, Forwarding, Mode, Observer, Scored, TokenKind
from comp.checkpoints.blip_slices import BlipCuts
from comp.checkpoints.encoder_shape import EncoderShape, TextShape
from comp.checkpoints.pruning_entry import PruningEntry
from comp.data.example import AnyExample, Example
from comp.errors import CompExportError
from comp.families.blip.slim_config import cross_outputs, text_layers
from comp.families.blip.text_forward import branches_of, cross_key
from comp.families.encoder.adapter import Shares, blocks_left, ratios_of, typical_workload
from comp.families.surgery import fill_slim
from comp.families.tokenizing import save_processor
from comp.flops.encoder import blip_macs
from comp.flops.token_drops import dropped_macs
from comp.masks import UNCUT, BlockKey, BlockShape, StructureCounts, completed
from comp.plan import DropPlan, Part, Place, PruningPlan, Workload

MODES: tuple[Mode, ...] = (
    Mode("vision_tokens", tokens="vision"),
    Mode("language_tokens", tokens="text"),
    Mode("vision_parameters", part="vision"),
    Mode("language_parameters", part="language"),
    Mode("cross_parameters", part="cross"),
)
BatchT = TypeVar("BatchT", bound="BlipBatch")


@dataclass(frozen=True)
class BlipBatch:
    """Images ``[I, C, S, S]`` with texts ``[B, L]``, with start and end tokens, padded."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def to(self: BatchT, device: torch.device) -> BatchT:
        return type(self)(*(t.to(device) for t in vars(self).values()))


class BlipAdapter(FamilyAdapter):
    """Adapter of a loaded BLIP, dense or slim.

    Vision tokens may be dropped in every block of the tower, text tokens in those of the text encoder (not
    in the last one if only [CLS] is read after it). Decoders drop nothing. Language blocks are the text
    encoder's, then the decoder's; cross blocks are the branches of cross-attention in that order.

    Attributes:
        architecture: class name of the dense model.
        slim_type: class of the slim model.
        images: number of images that a text is about.
        reads_all: whether all tokens that the text encoder leaves are read after it.
    """

    name = "blip"
    lora_targets = (
        r".*encoder\.layers?\..*\."
        r"(qkv|projection|fc1|fc2|query|key|value|dense|dense0|dense1|merge_layer)"
    )
    modes = MODES
    default_modes = tuple(mode.name for mode in MODES)
    architecture: ClassVar[str]
    slim_type: ClassVar[Any]
    images: ClassVar[int] = 1
    reads_all: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.processor = processor
        self.stored_dtype = stored_dtype
        base = {"model_type": "blip", "architectures": [self.architecture]}
        self.shape = EncoderShape.from_config(model.config.to_dict() | base)
        self.layers = text_layers(model)
        encoder = getattr(model, "text_encoder", None)
        self.encoder_blocks = 0 if encoder is None else len(encoder.encoder.layer)
        self.blocks = (*self._vision_blocks(), *self._text_blocks(), *self._cross_blocks())
        seen = range(1, len(model.vision_model.encoder.layers) + 1)
        read = range(1, self.encoder_blocks + self.reads_all)
        places: dict[Place, tuple[TokenKind, ...]] = {("vision", n): ("vision",) for n in seen}
        self.drop_places = places | {("language", n): ("text",) for n in read}

    @property
    def device(self) -> torch.device:
        return self.model.vision_model.post_layernorm.weight.device

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> BlipBatch: ...

    @abstractmethod
    def score(
        self, batch: Any, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored: ...

    def with_features(self, batch: BlipBatch, masks: object) -> BlipBatch:
        """Return the batch: tokens are dropped inside the tower, so that no features can be reused."""
        return batch.to(self.device)

    def workload(self, batches: Iterable[BlipBatch]) -> Workload:
        return typical_workload(batches, self.images * self.shape.vision.tokens)

    def macs(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """Multiply-accumulates of one request as it is served."""
        return sum(blip_macs(self._left(counts), on, ratios_of(shares)).values())

    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        return sum(dropped_macs(self._left(counts), on, drops).values())

    def _left(self, counts: StructureCounts) -> EncoderShape:
        """Sizes of the model with these heads and channels."""
        tower, decoder = self.shape.vision, self.shape.decoder
        if decoder is not None:
            decoder = self.text_left(decoder, counts, self.encoder_blocks)
        return replace(
            self.shape,
            vision=replace(tower, blocks=blocks_left("vision", tower.blocks, counts)),
            text=self.text_left(self.shape.text, counts),
            decoder=decoder,
        )

    def text_left(self, shape: TextShape, counts: StructureCounts, first: int = 0) -> TextShape:
        """Sizes of a text model with these heads and channels; its blocks are numbered from ``first``."""
        blocks = []
        for number, block in enumerate(
            blocks_left("language", shape.blocks, counts, first), start=first
        ):
            total = len(block.cross_heads)
            keys = [cross_key(number, branch, total) for branch in range(total)]
            left = (
                counts.heads.get(k, heads) for k, heads in zip(keys, block.cross_heads, strict=True)
            )
            blocks.append(replace(block, cross_heads=tuple(left)))
        return replace(shape, blocks=tuple(blocks))

    def has_cls(self, key: BlockKey) -> bool:
        """Whether token 0 of a block is [CLS]: everywhere but in decoders."""
        part, number = key
        return part == "vision" or number < self.encoder_blocks * (
            self.images if part == "cross" else 1
        )

    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear | None]:
        part, number = key
        if part == "vision":
            layer = self.model.vision_model.encoder.layers[number]
            return layer.self_attn.projection, layer.mlp.fc2
        if part == "language":
            layer = self.layers[number]
            return layer.attention.output.dense, layer.output.dense
        owner, name = [pair for layer in self.layers for pair in cross_outputs(layer)][number]
        return getattr(owner, name), None

    def train_parts(self, parts: set[Part]) -> None:
        """Train all weights, whatever the parts: the other parts compensate for a pruned one."""
        del parts
        self.model.requires_grad_(requires_grad=True)

    def cut(self, plan: PruningPlan) -> "BlipAdapter":
        plan = completed(plan, self.blocks)
        settings = self.model.config.to_dict() | {"pruning": PruningEntry.of_plan(plan).to_json()}
        settings.pop("model_type", None)
        with torch.device("meta"):
            slim = self.slim_type(self.slim_type.config_class(**settings))
        dims: dict[Part, int] = {
            "vision": self.shape.vision.head_dim,
            "language": self.shape.text.head_dim,
            "cross": self.shape.text.head_dim,
        }
        cuts = BlipCuts(plan, dims, self.encoder_blocks, self.images)
        fill_slim(slim, self.model, cuts.of)
        slim.tie_weights()
        return type(self)(slim.eval(), self.processor, self.stored_dtype)

    def save(self, directory: Path) -> None:
        self.model.to(self.stored_dtype).save_pretrained(directory)
        self.model.float()
        save_processor(self.processor, directory)

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

    def _vision_blocks(self) -> list[BlockShape]:
        return [
            _block(
                "vision",
                number,
                layer.self_attn.projection,
                layer.self_attn.head_dim,
                layer.mlp.fc1.out_features,
            )
            for number, layer in enumerate(self.model.vision_model.encoder.layers)
        ]

    def _text_blocks(self) -> list[BlockShape]:
        return [
            _block(
                "language",
                number,
                layer.attention.output.dense,
                layer.attention.self.attention_head_size,
                layer.intermediate.dense.out_features,
            )
            for number, layer in enumerate(self.layers)
        ]

    def _cross_blocks(self) -> list[BlockShape]:
        blocks = []
        for number, layer in enumerate(self.layers):
            branches = branches_of(layer)
            for branch, (owner, name) in enumerate(cross_outputs(layer)):
                key = cross_key(number, branch, len(branches))
                size = branches[branch].attention_head_size
                blocks.append(_block(*key, getattr(owner, name), size, 0))
        return blocks


def one_image(examples: Sequence[AnyExample], task: str) -> Sequence[Example]:
    """Return the examples, checked to have one image each.

    Raises:
        CompExportError: an example has two images.
    """
    for example in examples:
        if not isinstance(example, Example):
            raise CompExportError(
                f"an example with {len(example.images)} images, and a BLIP for {task} takes one: give "
                "it examples of one image"
            )
    return [example for example in examples if isinstance(example, Example)]


def _block(part: Part, number: int, output: Any, head_dim: int, channels: int) -> BlockShape:
    """Shape of a block whose attention ends in the projection ``output``."""
    heads = output.in_features // head_dim
    return BlockShape(
        part, number, output.out_features, heads, heads, head_dim, channels, gated=False
    )
