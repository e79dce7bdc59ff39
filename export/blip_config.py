"""What the graphs of a BLIP need to know besides its sizes, from ``config.json`` alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp.checkpoints import read_config
from comp.encoder_shapes import BlockSize, EncoderShape, Task, TextShape
from comp.errors import CompExportError
from comp.plan import BlockPlan, DropPlan, Part, PruningPlan, keep_count
from export.encoder_config import TowerSettings, cut_blocks, recorded_sizes, tower_settings

FAMILY = "blip"
TYPES = ("blip", "comp_blip", "comp_blip_nlvr")
SLIM = "Comp"  # what the architecture of a slim checkpoint starts with
VISION_EPSILON, TEXT_EPSILON = 1e-5, 1e-12
IMAGE_SIZE, PATCH_SIZE = 384, 16
BOS, SEP, PAD = 30522, 102, 0


@dataclass(frozen=True)
class BlipTokens:
    """Token ids that generation needs.

    Attributes:
        bos: [DEC], what every answer and caption starts with.
        sep: ends them.
        pad: stands where there is nothing.
    """

    bos: int
    sep: int
    pad: int


@dataclass(frozen=True)
class BlipShape:
    """Everything but the weights that the graphs of a BLIP are built from.

    Attributes:
        sizes: widths and counts, per block where pruning changes them; says the task, and which
            blocks merge what two images gave.
        image_size, patch_size: of the vision tower, in pixels.
        vision, text: activation and epsilon.
        tokens: ids that generation needs.
        drops: of the vision tower and of the text encoder.
    """

    sizes: EncoderShape
    image_size: int
    patch_size: int
    vision: TowerSettings
    text: TowerSettings
    tokens: BlipTokens
    drops: tuple[DropPlan, ...] = ()

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return self.sizes.task

    @property
    def encoder(self) -> TextShape | None:
        """The text encoder; a captioner has none."""
        return None if self.task == "caption" else self.sizes.text

    @property
    def decoder(self) -> TextShape | None:
        """The text decoder of a captioner, or of what answers questions."""
        return self.sizes.text if self.task == "caption" else self.sizes.decoder

    @property
    def branches(self) -> int:
        """Cross-attentions of a block."""
        return len(self.sizes.text.blocks[0].cross_heads)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image that are left behind the vision tower."""
        count = self.sizes.vision.tokens
        for drop in sorted(self.drops, key=lambda drop: drop.after_layer):
            if drop.part == "vision":
                count = keep_count(count, drop.vision_keep_ratio)
        return count

    def drop(self, part: Part, after_layer: int) -> DropPlan | None:
        """The drop at a place, if there is one."""
        return next((d for d in self.drops if d.place == (part, after_layer)), None)

    def pruned(self, plan: PruningPlan) -> "BlipShape":
        """The shape that is left when ``plan`` has been carried out.

        Raises:
            CompExportError: the plan is of another model, or the checkpoint is compressed already.
        """
        if plan.family != FAMILY:
            raise CompExportError(
                f"a plan of family {plan.family!r} for a BLIP: pass the run of a BLIP"
            )
        if self.drops:
            raise CompExportError(
                "the checkpoint is compressed already: pass its dense model with --model"
            )
        language = self.sizes.text.blocks + (
            self.sizes.decoder.blocks if self.sizes.decoder else ()
        )
        cross = [heads for block in language for heads in block.cross_heads]
        vision = [(block.heads, block.channels) for block in self.sizes.vision.blocks]
        read = [(block.heads, block.channels) for block in language]
        left = {
            "vision": _left(vision, plan.part("vision")),
            "language": _left(read, plan.part("language")),
        }
        crossed = [heads for heads, _ in _left([(h, 0) for h in cross], plan.part("cross"))]
        return _checked(replace(self, sizes=_cut(self.sizes, left, crossed), drops=plan.drops))


def read_blip(directory: Path) -> BlipShape:
    """Read a dense or a slim BLIP checkpoint's configuration.

    Raises:
        CompExportError: not a BLIP, or a feature of it that is not supported.
    """
    return blip_of(read_config(directory), str(directory))


def blip_of(config: dict[str, Any], where: str) -> BlipShape:
    """As ``read_blip`` for a configuration in memory; ``where`` names it in errors."""
    if config.get("model_type") not in TYPES:
        raise CompExportError(f"{where}: model_type is {config.get('model_type')!r}, not 'blip'")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    if not (config.get("tie_word_embeddings", True) and text.get("tie_word_embeddings", True)):
        raise CompExportError(
            f"{where}: tie_word_embeddings is false: only a BLIP whose output layer is its word "
            "embedding can be exported"
        )
    architecture = (config.get("architectures") or [""])[0].removeprefix(SLIM)
    dense = config | {"model_type": FAMILY, "architectures": [architecture]}
    sizes = EncoderShape.from_config(dense, where)
    pruning = config.get("pruning") or {}
    recorded = {part: recorded_sizes(pruning, part) for part in ("vision", "language")}
    cross = (pruning.get("cross") or {}).get("num_attention_heads") or []
    shape = BlipShape(
        sizes=_cut(sizes, recorded, cross),
        image_size=_number(vision, "image_size", IMAGE_SIZE),
        patch_size=_number(vision, "patch_size", PATCH_SIZE),
        vision=tower_settings(config, "vision_config", where, "gelu", VISION_EPSILON),
        text=tower_settings(config, "text_config", where, "gelu", TEXT_EPSILON),
        tokens=BlipTokens(
            bos=_number(text, "bos_token_id", BOS),
            sep=_number(text, "sep_token_id", SEP),
            pad=_number(text, "pad_token_id", PAD),
        ),
        drops=tuple(DropPlan(**drop) for drop in pruning.get("drops", [])),
    )
    return _checked(shape)


def _number(values: Mapping[str, Any], name: str, default: int) -> int:
    found = values.get(name)
    return default if found is None else int(found)


def _left(whole: list[tuple[int, int]], blocks: tuple[BlockPlan, ...]) -> list[tuple[int, int]]:
    """Heads and channels of each block behind a plan; a block it does not name stays whole."""
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


def _cut(
    sizes: EncoderShape, recorded: Mapping[str, list[tuple[int, int]]], cross: list[int]
) -> EncoderShape:
    """The sizes with what is left of each block; a part without an entry is whole."""
    vision, text, decoder = sizes.vision, sizes.text, sizes.decoder
    language = text.blocks + (decoder.blocks if decoder else ())
    blocks = _cross_heads(cut_blocks(language, recorded["language"]), cross)
    first = len(text.blocks)
    return replace(
        sizes,
        vision=replace(vision, blocks=cut_blocks(vision.blocks, recorded["vision"])),
        text=replace(text, blocks=blocks[:first]),
        decoder=replace(decoder, blocks=blocks[first:]) if decoder else None,
    )


def _cross_heads(blocks: tuple[BlockSize, ...], cross: list[int]) -> tuple[BlockSize, ...]:
    """Blocks with the heads of each branch of each block, counted block by block."""
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


def _checked(shape: BlipShape) -> BlipShape:
    """Refuse drops where no tokens can go."""
    layers = {
        "vision": len(shape.sizes.vision.blocks),
        "language": len(shape.encoder.blocks) if shape.encoder else 0,
    }
    for drop in shape.drops:
        if drop.after_layer > layers.get(drop.part, 0):
            raise CompExportError(
                f"tokens dropped behind block {drop.after_layer} of {drop.part}, which has "
                f"{layers.get(drop.part, 0)} that drop: prune the model again"
            )
    return shape
