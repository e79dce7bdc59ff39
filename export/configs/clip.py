"""What the graphs of a CLIP need to know besides its sizes, from ``config.json`` alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.locate import read_config
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.plan import DropPlan, Part, PruningPlan
from export.configs.text_end import TextEnd
from export.configs.towers import TowerSettings, tower_settings

FAMILY = "clip"
TYPES = ("clip", "comp_clip")
CLIP_END = 49407  # of CLIPTextConfig, where the configuration leaves it out
LEGACY_END = 2  # configurations from before the end of text was stored


@dataclass(frozen=True)
class ClipShape:
    """Everything but the weights that the graphs of a CLIP are built from.

    Attributes:
        sizes: widths and counts, per block where pruning changes them.
        image_size, patch_size: of the vision tower, in pixels.
        drops: of both towers.
        end_of_text: which token of a text is pooled.
    """

    sizes: EncoderShape
    image_size: int
    patch_size: int
    vision: TowerSettings
    text: TowerSettings
    end_of_text: TextEnd
    drops: tuple[DropPlan, ...] = ()

    def drop(self, part: Part, after_layer: int) -> DropPlan | None:
        """The drop at a place, if there is one."""
        return next((d for d in self.drops if d.place == (part, after_layer)), None)

    def pruned(self, plan: PruningPlan) -> "ClipShape":
        """The shape that is left when ``plan`` has been carried out.

        Raises:
            CompExportError: the plan is of another family, or the checkpoint is compressed already.
        """
        found = SlimShape(self.sizes, self.sizes, self.drops).planned(plan)
        return replace(self, sizes=found.slim, drops=found.drops)


def read_clip(directory: Path) -> ClipShape:
    """Read a dense or a slim CLIP checkpoint's configuration.

    Raises:
        CompExportError: not a CLIP, or a feature of it that is not supported.
    """
    return clip_of(read_config(directory), str(directory))


def clip_of(config: dict[str, Any], where: str) -> ClipShape:
    """As ``read_clip`` for a configuration in memory; ``where`` names it in errors."""
    if config.get("model_type") not in TYPES:
        raise CompExportError(f"{where}: model_type is {config.get('model_type')!r}, not 'clip'")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    settings = [
        tower_settings(config, part, where, "quick_gelu", 1e-5)
        for part in ("vision_config", "text_config")
    ]
    found = SlimShape.from_config(config, where)
    end = _end(text, where)
    return ClipShape(
        sizes=found.slim,
        image_size=vision.get("image_size") or 224,
        patch_size=vision.get("patch_size") or 32,
        vision=settings[0],
        text=settings[1],
        end_of_text="largest" if end == LEGACY_END else end,
        drops=found.drops,
    )


def _end(text: Mapping[str, Any], where: str) -> int:
    """The id that ends a text: one of its own, as transformers compares tokens with it."""
    found = text.get("eos_token_id", CLIP_END)
    if type(found) is not int or found < 0:
        raise CompExportError(
            f"{where}: text_config.eos_token_id is {found!r}: a CLIP reads a text at the first token of "
            "one id, name it"
        )
    return found
