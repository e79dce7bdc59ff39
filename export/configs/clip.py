"""Read what the graphs of a CLIP need from ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from export.configs.text_end import TextEnd
from export.configs.towers import TowersShape, check_family, tower_settings

EPSILON = 1e-5
CLIP_END = 49407  # of CLIPTextConfig, where the configuration leaves it out
LEGACY_END = 2  # configurations from before the end of text was stored


@dataclass(frozen=True, kw_only=True)
class ClipShape(TowersShape):
    """Everything but the weights that the graphs of a CLIP are built from.

    Attributes:
        end_of_text: which token of a text is pooled.
    """

    end_of_text: TextEnd


def clip_of(config: dict[str, Any], where: str) -> ClipShape:
    """Read a dense or a slim checkpoint's configuration; ``where`` names it in errors.

    Raises:
        CompExportError: it is not a CLIP, or has an unsupported feature.
    """
    check_family(config, "clip", where)
    text = config.get("text_config") or {}
    slim = SlimShape.from_config(config, where)
    end = _end(text, where)
    return ClipShape(
        sizes=slim.slim,
        vision=tower_settings(config, "vision_config", where, "quick_gelu", EPSILON),
        text=tower_settings(config, "text_config", where, "quick_gelu", EPSILON),
        end_of_text="largest" if end == LEGACY_END else end,
        drops=slim.drops,
    )


def _end(text: Mapping[str, Any], where: str) -> int:
    """The id of the token that ends a text, as transformers compares tokens with it."""
    value = text.get("eos_token_id", CLIP_END)
    if type(value) is not int or value < 0:
        raise CompExportError(
            f"{where}: text_config.eos_token_id is {value!r}: a CLIP pools a text at the first token of "
            "one id, name it"
        )
    return value
