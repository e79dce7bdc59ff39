"""Modules of a vision-language model: image tower, connector and decoder, by the names of its class."""

from dataclasses import dataclass
from typing import Any

# Attribute names of the three parts in classes of transformers.
NAMES = (
    ("vision_tower", "multi_modal_projector", "language_model"),  # LLaVA
    ("vision_model", "connector", "text_model"),  # Idefics3, SmolVLM
)


@dataclass(frozen=True)
class Parts:
    """The modules of a model that the forward pass calls.

    Attributes:
        tower: the image tower.
        connector: what maps its features to the width of the decoder.
        language: the decoder, without the output layer.
    """

    tower: Any
    connector: Any
    language: Any


def parts_of(model: Any) -> Parts:
    """Return the parts of a model of transformers, dense or slim.

    Raises:
        TypeError: it is not a model of an image tower, a connector and a decoder.
    """
    core = model.model
    for names in NAMES:
        if all(hasattr(core, name) for name in names):
            return Parts(*(getattr(core, name) for name in names))
    raise TypeError(f"{type(model).__name__} has no image tower, connector and decoder")
