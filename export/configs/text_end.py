"""Where a CLIP's text ends: at the token that is pooled. Attention is causal, so what follows is not read."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextEnd = int | Literal["largest"]
"""The id that ends a text, at its first place; ``largest``: the largest id does, as in configurations from
before the id was stored, so that a token added later may be it."""


def read_to_end(ids: NDArray[np.int64], end: TextEnd | None) -> NDArray[np.int64]:
    """The ids ``[L]`` of a text up to the token that ``CLIPTextModel`` of transformers pools.

    Args:
        ids: with their frame. Of a text without its end the first token is pooled.
        end: of the texts of the model; none: the last token is pooled.
    """
    if end is None:
        return ids
    place = ids.argmax() if end == "largest" else (ids == end).argmax()
    return ids[: int(place) + 1]
