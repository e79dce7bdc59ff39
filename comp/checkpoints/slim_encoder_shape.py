"""Compute the sizes of a cut CLIP or BLIP, from a slim ``config.json`` or from a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comp.checkpoints.encoder_shape import BlockSize, EncoderShape
from comp.checkpoints.pruning_entry import PruningEntry
from comp.errors import CompExportError
from comp.plan import BlockPlan, DropPlan, Place, PruningPlan

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
        parts = {"vision": entry.vision, "language": entry.language}
        recorded = {part: sizes.blocks for part, sizes in parts.items() if sizes is not None}
        cross = (entry.cross and entry.cross.num_attention_heads) or ()
        drops = entry.drops or ()
        check_places(dense, drops)
        return cls(dense, cut_shape(dense, recorded, cross), drops)

    def planned(self, plan: PruningPlan) -> "SlimShape":
        """Return the sizes after applying a plan.

        Raises:
            CompExportError: the plan is for another model, this one is cut already, or tokens are
                dropped where there are none.
        """
        if plan.family != self.dense.family:
            raise CompExportError(
                f"a plan of family {plan.family!r} for a {self.dense.family.upper()}: pass the run of "
                f"a {self.dense.family.upper()}"
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
        return {
            drop.place: drop.vision_keep_ratio if drop.part == "vision" else drop.text_keep_ratio
            for drop in self.drops
        }


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
    language = shape.text.blocks + (shape.decoder.blocks if shape.decoder else ())
    cross = [heads for block in language for heads in block.cross_heads]
    vision = [(block.heads, block.channels) for block in shape.vision.blocks]
    language_sizes = [(block.heads, block.channels) for block in language]
    left = {
        "vision": _left(vision, plan.part("vision")),
        "language": _left(language_sizes, plan.part("language")),
    }
    crossed = [heads for heads, _ in _left([(h, 0) for h in cross], plan.part("cross"))]
    return cut_shape(shape, left, crossed)


def cut_shape(
    shape: EncoderShape,
    recorded: Mapping[str, Sequence[tuple[int, int]]],
    cross: Sequence[int] = (),
) -> EncoderShape:
    """Return the shape with other sizes of blocks; a part without an entry stays whole.

    Args:
        shape: sizes of the dense model.
        recorded: heads and channels of each block of ``vision`` and ``language`` (a decoder's after an
            encoder's).
        cross: heads of each branch of cross-attention, block by block.

    Raises:
        CompExportError: the numbers of blocks differ.
    """
    vision, text, decoder = shape.vision, shape.text, shape.decoder
    language = text.blocks + (decoder.blocks if decoder else ())
    blocks = _cross_heads(cut_blocks(language, recorded.get("language", ())), cross)
    first = len(text.blocks)
    return replace(
        shape,
        vision=replace(vision, blocks=cut_blocks(vision.blocks, recorded.get("vision", ()))),
        text=replace(text, blocks=blocks[:first]),
        decoder=replace(decoder, blocks=blocks[first:]) if decoder else None,
    )


def cut_blocks(
    whole: tuple[BlockSize, ...], recorded: Sequence[tuple[int, int]]
) -> tuple[BlockSize, ...]:
    """Return blocks with the recorded heads and channels; without records they stay whole.

    Raises:
        CompExportError: the numbers of blocks differ.
    """
    if not recorded:
        return whole
    if len(recorded) != len(whole):
        raise CompExportError(
            f"pruning records {len(recorded)} blocks of a part that has {len(whole)}: not a whole "
            "configuration; prune the model again"
        )
    return tuple(
        replace(block, heads=heads, channels=channels)
        for block, (heads, channels) in zip(whole, recorded, strict=True)
    )


def _left(whole: list[tuple[int, int]], blocks: tuple[BlockPlan, ...]) -> list[tuple[int, int]]:
    """Return heads and channels of each block after a plan; blocks that it does not name stay whole."""
    left = list(whole)
    for block in blocks:
        dense = (block.num_attention_heads, block.intermediate_size)
        if block.index >= len(whole) or whole[block.index] != dense:
            raise CompExportError(
                f"the plan has {block.part} block {block.index} of {dense[0]} heads and {dense[1]} "
                "channels, which the model has not: pass the dense model of the plan's run"
            )
        left[block.index] = (len(block.kept_heads), len(block.kept_channels))
    return left


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
