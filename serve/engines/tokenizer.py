"""The tokenizer of an artifact: texts to token ids and back."""

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
# Replacements by which transformers cleans decoded text if a checkpoint asks for it, in this order.
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
    """``tokenizer.json`` with its settings in the manifest."""

    def __init__(self, path: Path, processing: TextProcessing, positions: int) -> None:
        """The model's ``positions`` bound the characters of a text.

        Raises:
            CompExportError: the file cannot be read, or does not bound the length of texts.
        """
        check_ids(path, REMEDY)
        with tokenizer_errors(f"read {path}", REMEDY):
            self._tokenizer = Tokenizer.from_file(str(path))
        # A checkpoint's file may contain settings of padding and truncation.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = processing.split_special_tokens
        check_tokenizer(self._tokenizer, str(path), REMEDY)
        self._cleans = processing.clean_up_spaces
        self._most = most_characters(positions)

    def check(self, text: str, what: str) -> None:
        """Refuse a text that is empty, too long, or not valid Unicode.

        Raises:
            CompExportError: the message starts with ``what``.
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
        """Token ids of a checked text."""
        with tokenizer_errors(f"tokenise {shown(text)!r}", REMEDY):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decode token ids as transformers does."""
        with tokenizer_errors("make text of tokens", REMEDY):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self._cleans:
            for written, meant in CLEANED:
                text = text.replace(written, meant)
        return text


def shown(text: str) -> str:
    """The beginning of a text, for error messages."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
