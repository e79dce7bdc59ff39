"""Modules of a vision-language model: image tower, connector and decoder, by the names of its class."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Attribute names of the three parts in classes of transformers.
NAMES = (
    ("vision_tower", "multi_modal_projector", "language_model"),  # LLaVA, InternVL
    ("vision_model", "connector", "text_model"),  # Idefics3, SmolVLM
)


@dataclass(frozen=True)
class Parts:
    """The modules of a model that the forward pass calls.

    Attributes:
        tower: the image tower.
        connector: what maps its features to the width of the decoder.
        language: the decoder, without the output layer.
        shuffle: joins neighbouring features before the connector, where the connector does not.
    """

    tower: Any
    connector: Any
    language: Any
    shuffle: Any = None

    def connect(self, features: Tensor) -> Tensor:
        """Map the tower's features ``[I, T, F]`` to image tokens ``[I, K, d]``."""
        if self.shuffle is not None:
            side = round(features.shape[1] ** 0.5)
            squares = features.unflatten(1, (side, side))
            features = self.shuffle(squares).flatten(1, 2)
        image_tokens: Tensor = self.connector(features)
        return image_tokens


def parts_of(model: Any) -> Parts:
    """Return the parts of a model of transformers, dense or slim.

    Raises:
        TypeError: it is not a model of an image tower, a connector and a decoder.
    """
    core = model.model
    for names in NAMES:
        if all(hasattr(core, name) for name in names):
            tower, connector, language = (getattr(core, name) for name in names)
            return Parts(tower, connector, language, getattr(core, "pixel_shuffle", None))
    raise TypeError(f"{type(model).__name__} has no image tower, connector and decoder")
