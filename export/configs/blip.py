"""Read what the graphs of a BLIP need from ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.shapes import TextShape
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.plan import Task
from export.artifact.encoder_manifest import tokens_left
from export.configs.towers import TowersShape, check_family, tower_settings

VISION_EPSILON, TEXT_EPSILON = 1e-5, 1e-12
BOS, SEP = 30522, 102


@dataclass(frozen=True, kw_only=True)
class BlipShape(TowersShape):
    """Everything but the weights that the graphs of a BLIP are built from.

    Attributes:
        bos: the token [DEC], the first one of every answer and caption.
        sep: the last one.
    """

    bos: int
    sep: int

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self.sizes.task

    @property
    def encoder(self) -> TextShape | None:
        """The text encoder; a captioner has none."""
        return None if self.task == "caption" else self.sizes.text

    @property
    def decoder(self) -> TextShape | None:
        """The text decoder of a captioner or a question answerer."""
        return self.sizes.text if self.task == "caption" else self.sizes.decoder

    @property
    def branches(self) -> int:
        """Cross-attentions of a block."""
        return len(self.sizes.text.blocks[0].cross_heads)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image that remain after the vision tower."""
        return tokens_left(self.sizes.vision.tokens, "vision", self.drops)


def blip_of(config: dict[str, Any], where: str) -> BlipShape:
    """Read a dense or a slim checkpoint's configuration; ``where`` names it in errors.

    Raises:
        CompExportError: it is not a BLIP, or has an unsupported feature.
    """
    check_family(config, "blip", where)
    text = config.get("text_config") or {}
    slim = SlimShape.from_config(config, where)
    return BlipShape(
        sizes=slim.slim,
        vision=tower_settings(config, "vision_config", where, "gelu", VISION_EPSILON),
        text=tower_settings(config, "text_config", where, "gelu", TEXT_EPSILON),
        sep=_token(slim.slim, text, "sep_token_id", SEP, where),
        bos=_token(slim.slim, text, "bos_token_id", BOS, where),
        drops=slim.drops,
    )


def _token(
    sizes: EncoderShape, text: Mapping[str, Any], name: str, default: int, where: str
) -> int:
    """A token's id as BLIP's ``generate`` takes it: from ``text_config``, not ``generation_config.json``.

    Raises:
        CompExportError: the model generates text, and the token is not in the vocabulary.
    """
    value = text.get(name, default)
    if type(value) is int and 0 <= value < sizes.text.vocab_size:
        return value
    if sizes.task not in ("caption", "question"):
        return default
    raise CompExportError(
        f"{where}: text_config.{name} is {str(value)[:80]}, which is no token of a vocabulary of "
        f"{sizes.text.vocab_size}: take all files from the same checkpoint"
    )
