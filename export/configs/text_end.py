"""The end of a CLIP's text: the pooled token. Attention is causal, so later tokens have no effect."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextEnd = int | Literal["largest"]
"""The id whose first occurrence ends a text. ``largest``: the largest id in the text ends it, as in
configurations from before the id was stored; then a token added later may be it."""


def read_to_end(ids: NDArray[np.int64], end: TextEnd | None) -> NDArray[np.int64]:
    """Cut the ids ``[L]`` of a text after the token that ``CLIPTextModel`` of transformers pools.

    Args:
        ids: token ids with special tokens. If a text lacks its end, the first token is pooled.
        end: the token that ends a text; ``None``: the last token is pooled.
    """
    if end is None:
        return ids
    place = ids.argmax() if end == "largest" else (ids == end).argmax()
    return ids[: int(place) + 1]
