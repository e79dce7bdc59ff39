"""Adapt BLIP to pruning: the base class of the adapters of its four tasks."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ProcessorMixin

from comp.adapter import Mode, TokenKind
from comp.checkpoints.blip_slices import BlipCuts
from comp.checkpoints.shapes import cross_key
from comp.checkpoints.slices import Cut
from comp.data.example import AnyExample, Example
from comp.errors import CompExportError
from comp.families.blip.slim_config import cross_outputs, text_layers
from comp.families.blip.text_forward import branches_of, vision_blocks
from comp.families.encoder.adapter import EncoderAdapter
from comp.families.encoder.forward import block_shape
from comp.masks import BlockKey, BlockShape
from comp.plan import Part, Place, PruningPlan

MODES: tuple[Mode, ...] = (
    Mode("vision_tokens", tokens="vision"),
    Mode("language_tokens", tokens="text"),
    Mode("vision_parameters", part="vision"),
    Mode("language_parameters", part="language"),
    Mode("cross_parameters", part="cross"),
)


class BlipAdapter(EncoderAdapter):
    """Adapter of a loaded BLIP, dense or slim.

    Vision tokens may be dropped in every block of the tower, text tokens in those of the text encoder (not
    in the last one if only [CLS] is read after it). Decoders drop nothing. Language blocks are the text
    encoder's, then the decoder's; cross blocks are the branches of cross-attention in that order.

    Attributes:
        reads_all: whether all tokens that the text encoder leaves are read after it.
    """

    name = "blip"
    lora_targets = (
        r".*encoder\.layers?\..*\."
        r"(qkv|projection|fc1|fc2|query|key|value|dense|dense0|dense1|merge_layer)"
    )
    modes = MODES
    default_modes = tuple(mode.name for mode in MODES)
    reads_all: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        processor: ProcessorMixin,
        stored_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, processor, stored_dtype)
        self.layers = text_layers(model)
        encoder = getattr(model, "text_encoder", None)
        self.encoder_blocks = 0 if encoder is None else len(encoder.encoder.layer)
        tower = vision_blocks(model.vision_model)
        vision = (block.shape("vision", number) for number, block in enumerate(tower))
        self.blocks = (*vision, *self._text_blocks(), *self._cross_blocks())
        seen = range(1, len(tower) + 1)
        read = range(1, self.encoder_blocks + self.reads_all)
        places: dict[Place, tuple[TokenKind, ...]] = {("vision", n): ("vision",) for n in seen}
        self.drop_places = places | {("language", n): ("text",) for n in read}

    def has_cls(self, key: BlockKey) -> bool:
        """Whether token 0 of a block is [CLS]: everywhere but in decoders."""
        part, number = key
        return part == "vision" or number < self.encoder_blocks * (
            self.images if part == "cross" else 1
        )

    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear | None]:
        part, number = key
        if part == "vision":
            block = vision_blocks(self.model.vision_model)[number]
            return block.output, block.layer.mlp.fc2
        if part == "language":
            layer = self.layers[number]
            return layer.attention.output.dense, layer.output.dense
        owner, name = [pair for layer in self.layers for pair in cross_outputs(layer)][number]
        return getattr(owner, name), None

    def cuts(self, plan: PruningPlan) -> Callable[[str], Cut | None]:
        text = self.shape.text.head_dim
        dims: dict[Part, int] = {
            "vision": self.shape.vision.head_dim,
            "language": text,
            "cross": text,
        }
        return BlipCuts(plan, dims, self.encoder_blocks, self.images).of

    def _text_blocks(self) -> list[BlockShape]:
        return [
            block_shape(
                "language",
                number,
                layer.attention.output.dense,
                layer.attention.self.attention_head_size,
                layer.intermediate.dense,
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
                blocks.append(block_shape(*key, getattr(owner, name), size, None))
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
