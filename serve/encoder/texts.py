"""Texts for CLIP and BLIP: tokenised with their frame, grouped by length so that none is padded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from comp.errors import CompExportError
from export.manifest import REMEDY

SHOWN = 60  # characters of a text in an error


class TextEncoder:
    """The tokenizer of one artifact."""

    def __init__(self, tokenizer: Path, positions: int) -> None:
        """``positions`` is the longest text, its frame counted.

        Raises:
            CompExportError: ``tokenizer.json`` cannot be read.
        """
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CompExportError(f"cannot read {tokenizer} ({error}): {REMEDY}") from error
        # A checkpoint's file may remember how its last batch was padded and cut off.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.positions = positions

    def encode(self, text: str, what: str = "text") -> NDArray[np.int64]:
        """Token ids ``[L]`` of a text with its frame.

        Raises:
            CompExportError: an empty text, or one longer than the model's positions.
        """
        if not text.strip():
            raise CompExportError(f"a {what} is empty: give some words")
        ids = np.array(self.tokenizer.encode(text).ids, dtype=np.int64)
        if ids.size > self.positions:
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            raise CompExportError(
                f"the {what} {shown!r} has {ids.size} tokens, the model has {self.positions} "
                "positions: shorten it"
            )
        return ids


def by_length(
    texts: Sequence[NDArray[np.int64]], batch_size: int
) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Batches of texts of one length: where they stood, and their ids ``[n, L]``, ``n <= batch_size``."""
    groups: dict[int, list[int]] = {}
    for place, ids in enumerate(texts):
        groups.setdefault(ids.size, []).append(place)
    return [
        (places, np.stack([texts[place] for place in places]))
        for members in groups.values()
        for first in range(0, len(members), batch_size)
        for places in [members[first : first + batch_size]]
    ]
