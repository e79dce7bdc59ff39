"""Tokenise texts for CLIP and BLIP, and group them by length so that none is padded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.manifest import TextProcessing
from serve.engines.tokenizer import ArtifactTokenizer, shown


class TextEncoder:
    """The tokenizer of one artifact."""

    def __init__(self, tokenizer: Path, processing: TextProcessing, positions: int) -> None:
        """``positions`` is the longest text, with special tokens.

        Raises:
            CompExportError: as for ``ArtifactTokenizer``.
        """
        self.tokenizer = ArtifactTokenizer(tokenizer, processing, positions)
        self.positions = positions

    def encode(self, text: str, what: str = "text") -> NDArray[np.int64]:
        """Token ids ``[L]`` of a text with its special tokens.

        Raises:
            CompExportError: the text is empty, invalid, or longer than the model's positions.
        """
        self.tokenizer.check(text, f"a {what}")
        ids = np.array(self.tokenizer.encode(text), dtype=np.int64)
        if ids.size > self.positions:
            raise CompExportError(
                f"the {what} {shown(text)!r} has {ids.size} tokens, the model has {self.positions} "
                "positions: shorten it"
            )
        return ids


def by_length(
    texts: Sequence[NDArray[np.int64]], batch_size: int
) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Batches of texts of one length: their indices, and their ids ``[n, L]``, ``n <= batch_size``."""
    groups: dict[int, list[int]] = {}
    for place, ids in enumerate(texts):
        groups.setdefault(ids.size, []).append(place)
    return [
        (places, np.stack([texts[place] for place in places]))
        for members in groups.values()
        for first in range(0, len(members), batch_size)
        for places in [members[first : first + batch_size]]
    ]
