"""The tokenizer of an artifact: words in, token ids out, and back."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from comp.checkpoints.tokenizer_limits import (
    check_ids,
    check_tokenizer,
    most_characters,
    tokenizer_errors,
)
from comp.errors import CompExportError
from export.artifact.manifest import REMEDY, TextProcessing

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
SHOWN = 60  # characters of a text in an error
# What transformers does to decoded text where a checkpoint asks for it, in this order.
CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class ArtifactTokenizer:
    """``tokenizer.json`` and the settings of the manifest that belong to it."""

    def __init__(self, path: Path, processing: TextProcessing, positions: int) -> None:
        """``positions`` of the model bound the characters of a text.

        Raises:
            CompExportError: the file cannot be read, or lets texts grow without bound.
        """
        check_ids(path, REMEDY)
        with tokenizer_errors(f"read {path}", REMEDY):
            self._tokenizer = Tokenizer.from_file(str(path))
        # A checkpoint's file may remember how its last batch was padded and cut off.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = processing.split_special_tokens
        check_tokenizer(self._tokenizer, str(path), REMEDY)
        self._cleans = processing.clean_up_spaces
        self._most = most_characters(positions)

    def check(self, text: str, what: str) -> None:
        """Refuse a text that is not worth tokenising: empty, too long, or no text.

        Raises:
            CompExportError: names ``what`` is refused.
        """
        if not text.strip():
            raise CompExportError(f"{what} is empty: give some words")
        if len(text) > self._most:
            raise CompExportError(
                f"{what} has {len(text)} characters, and {self._most} are the most that "
                "this model reads: shorten it"
            )
        if half := HALF_CHARACTER.search(text):
            raise CompExportError(
                f"{what} holds half of a surrogate pair (U+{ord(half[0]):04X}, character "
                f"{half.start() + 1}), which is no character: write it in UTF-8"
            )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text that was checked."""
        with tokenizer_errors(f"tokenise {shown(text)!r}", REMEDY):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids, as transformers decodes them."""
        with tokenizer_errors("make text of tokens", REMEDY):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self._cleans:
            for written, meant in CLEANED:
                text = text.replace(written, meant)
        return text


def shown(text: str) -> str:
    """The beginning of a text, for an error."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
