"""Compute the sizes of a cut CLIP or BLIP, from a slim ``config.json`` or from a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.pruning_entry import PruningEntry
from comp.checkpoints.shapes import BlockSize, cut_blocks, planned_blocks
from comp.errors import CompExportError
from comp.plan import DropPlan, Place, PruningPlan

SLIM = "Comp"  # prefix of the architecture of a slim checkpoint
DENSE_TYPES = {"comp_clip": "clip", "comp_blip": "blip"}


@dataclass(frozen=True)
class SlimShape:
    """Sizes of a CLIP or a BLIP before and after cutting.

    Attributes:
        dense, slim: sizes before and after; equal for a dense checkpoint.
        drops: token drops.
    """

    dense: EncoderShape
    slim: EncoderShape
    drops: tuple[DropPlan, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> "SlimShape":
        """Read a configuration, slim or dense; ``where`` names it in errors.

        Raises:
            CompExportError: it is neither a CLIP nor a BLIP, or incomplete.
        """
        dense = dense_shape(config, where)
        entry = PruningEntry.read(config, where)
        drops = entry.drops or ()
        check_places(dense, drops)
        vision, language, cross = entry.vision, entry.language, entry.cross
        slim = _with_blocks(
            dense,
            cut_blocks(dense.vision.blocks, vision.blocks if vision else ()),
            cut_blocks(_language_blocks(dense), language.blocks if language else ()),
            cross.heads if cross else (),
        )
        return cls(dense, slim, drops)

    def planned(self, plan: PruningPlan) -> "SlimShape":
        """Return the sizes after applying a plan.

        Raises:
            CompExportError: the plan is for another model, this one is cut already, or tokens are
                dropped where there are none.
        """
        if plan.family != self.dense.family:
            raise CompExportError(
                f"that is a plan of a {plan.family}, and the model is a {self.dense.family}: pass the plan "
                f"of a {self.dense.family}"
            )
        if self.drops:
            raise CompExportError(
                "the checkpoint is compressed already: pass its dense model with --model"
            )
        check_places(self.dense, plan.drops)
        return SlimShape(self.dense, planned_shape(self.dense, plan), plan.drops)

    @property
    def ratios(self) -> dict[Place, float]:
        """Keep ratio of the one kind of token at each drop place."""
        return {drop.place: drop.keep_ratio for drop in self.drops}


def check_places(shape: EncoderShape, drops: tuple[DropPlan, ...]) -> None:
    """Refuse drops where no tokens can be dropped.

    Raises:
        CompExportError: names the first such drop.
    """
    layers = {
        "vision": len(shape.vision.blocks),
        "language": 0 if shape.task == "caption" else len(shape.text.blocks),
    }
    for drop in drops:
        if drop.after_layer > layers.get(drop.part, 0):
            raise CompExportError(
                f"tokens dropped after block {drop.after_layer} of {drop.part}, which has "
                f"{layers.get(drop.part, 0)} that drop: prune the model again"
            )


def dense_shape(config: Mapping[str, Any], where: str = "config.json") -> EncoderShape:
    """Return the sizes before any cut, which a slim configuration still contains.

    Raises:
        CompExportError: it is neither a CLIP nor a BLIP.
    """
    kind = config.get("model_type")
    architecture = (config.get("architectures") or [""])[0].removeprefix(SLIM)
    dense_fields = {"model_type": DENSE_TYPES.get(str(kind), kind), "architectures": [architecture]}
    return EncoderShape.from_config({**config, **dense_fields}, where)


def planned_shape(shape: EncoderShape, plan: PruningPlan) -> EncoderShape:
    """Return the sizes of a dense model after a plan; blocks that it does not name stay whole.

    Raises:
        CompExportError: the plan is for another model.
    """
    language = _language_blocks(shape)
    cross = tuple(BlockSize(heads, 0) for block in language for heads in block.cross_heads)
    return _with_blocks(
        shape,
        planned_blocks(shape.vision.blocks, plan.part("vision")),
        planned_blocks(language, plan.part("language")),
        [block.heads for block in planned_blocks(cross, plan.part("cross"))],
    )


def _language_blocks(shape: EncoderShape) -> tuple[BlockSize, ...]:
    """Return the blocks of the text encoder, then those of the decoder."""
    return shape.text.blocks + (shape.decoder.blocks if shape.decoder else ())


def _with_blocks(
    shape: EncoderShape,
    vision: tuple[BlockSize, ...],
    language: tuple[BlockSize, ...],
    cross: Sequence[int],
) -> EncoderShape:
    """Return the shape with other blocks.

    Args:
        shape: sizes of the dense model.
        vision, language: blocks of the tower; of the text encoder, then of the decoder.
        cross: heads of each branch of cross-attention, block by block; empty if they stay.

    Raises:
        CompExportError: ``cross`` has another number of entries than the blocks have branches.
    """
    blocks = _cross_heads(language, cross)
    first, decoder = len(shape.text.blocks), shape.decoder
    return replace(
        shape,
        vision=replace(shape.vision, blocks=vision),
        text=replace(shape.text, blocks=blocks[:first]),
        decoder=replace(decoder, blocks=blocks[first:]) if decoder else None,
    )


def _cross_heads(blocks: tuple[BlockSize, ...], cross: Sequence[int]) -> tuple[BlockSize, ...]:
    """Return blocks with these heads of each branch of cross-attention, block by block."""
    if not cross:
        return blocks
    branches = len(blocks[0].cross_heads)
    if len(cross) != branches * len(blocks):
        raise CompExportError(
            f"pruning.cross has {len(cross)} entries for {len(blocks)} blocks of {branches} "
            "cross-attentions: not a whole configuration; prune the model again"
        )
    return tuple(
        replace(block, cross_heads=tuple(cross[branches * number : branches * (number + 1)]))
        for number, block in enumerate(blocks)
    )
