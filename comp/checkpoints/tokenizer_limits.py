"""Limit how much a tokenizer can grow a text, so that a few words stay a few tokens.

A ``tokenizer.json`` comes with a checkpoint. It can replace a character by a megabyte, add a million tokens
to every text, or have tokens as long as books. All real tokenizers stay far below these limits. Slow regular
expressions are not covered.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from comp.errors import CompExportError

ODD = "a ☕ Ж \0 \U0010fffd"  # a tokenizer without an unknown token raises for this text
LONGEST_PIECE = 64  # characters that one rule writes
MOST_GROWTH = 64  # growth factor of the rules of one list together
LONGEST_TOKEN = 4096  # characters
MOST_FRAME = 64  # special tokens added to every text
LONGEST_CHARACTER = 256  # bytes that a character table writes for one character
CHARACTERS_A_POSITION = 64  # of a text, for each position of the model
FEWEST_CHARACTERS = 2**16  # of a text that is tokenised in any case
LARGEST_ID = 2**24  # of a token; the library allocates tables of this size
# The length at which texts are truncated is not an id, and truncation is switched off.
LONG_NUMBER = re.compile(rb'(?<!"max_length")[:,\[]\s*(\d{8,19})\b')


@contextmanager
def tokenizer_errors(doing: str, remedy: str) -> Iterator[None]:
    """Convert anything that the tokenizers library raises to ``CompExportError``.

    Its panics are not subclasses of ``Exception``.
    """
    try:
        yield
    except (CompExportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = str(error).strip().partition("\n")[0]
        raise CompExportError(
            f"cannot {doing} ({reason or type(error).__name__}): {remedy}"
        ) from error


def check_ids(path: Path, remedy: str) -> None:
    """Refuse a ``tokenizer.json`` with an id for which the library would exhaust memory.

    Only long numbers are searched, so that a file of megabytes takes milliseconds. A missing file is left
    to its reader to refuse.

    Raises:
        CompExportError: names the id.
    """
    try:
        text = path.read_bytes()
    except OSError:
        return
    largest = max((int(match[1]) for match in LONG_NUMBER.finditer(text)), default=0)
    if largest > LARGEST_ID:
        raise CompExportError(
            f"{path} has a token of id {largest}, and {LARGEST_ID} is the largest: {remedy}"
        )


def check_tokenizer(tokenizer: Tokenizer, where: str, remedy: str) -> None:
    """Refuse a tokenizer that can grow texts without bound, or that fails for some text.

    Raises:
        CompExportError: names the rule and its growth, or the library's error.
    """
    with tokenizer_errors(f"use {where}", remedy):
        _check(tokenizer, where, remedy)
        tokenizer.decode(tokenizer.encode(ODD).ids)


def _check(tokenizer: Tokenizer, where: str, remedy: str) -> None:
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        component = getattr(tokenizer, part)
        if component is not None:
            _check_growth(json.loads(component.__getstate__()), f"{part} of {where}", remedy)
    frame = tokenizer.num_special_tokens_to_add(False)  # noqa: FBT003, the library's own parameter
    if frame > MOST_FRAME:
        raise CompExportError(
            f"the post_processor of {where} adds {frame} tokens to every text, and {MOST_FRAME} are the "
            f"most: {remedy}"
        )
    longest = max(map(len, tokenizer.get_vocab()), default=0)
    if longest > LONGEST_TOKEN:
        raise CompExportError(
            f"{where} has a token of {longest} characters, and {LONGEST_TOKEN} are the most: {remedy}"
        )


def most_characters(positions: int) -> int:
    """Longest text in characters that is tokenised for a model with this number of positions."""
    return max(FEWEST_CHARACTERS, positions * CHARACTERS_A_POSITION)


def _check_growth(component: dict[str, Any], where: str, remedy: str) -> None:
    growth = 1
    for rule in _rules(component):
        written = _written(rule)
        if written > LONGEST_PIECE:
            raise CompExportError(
                f"a rule ({rule.get('type')}) in the {where} writes {written} characters, and "
                f"{LONGEST_PIECE} are the most: {remedy}"
            )
        if rule.get("type") == "Replace":
            growth *= max(1, written)
        table = rule.get("precompiled_charsmap")
        if table is not None and (most := _longest_of_table(table)) > LONGEST_CHARACTER:
            raise CompExportError(
                f"the character table in the {where} makes {most} bytes of one character, and "
                f"{LONGEST_CHARACTER} are the most: {remedy}"
            )
    if growth > MOST_GROWTH:
        raise CompExportError(
            f"the rules of the {where} make a text {growth} times as long, and {MOST_GROWTH} times are "
            f"the most: {remedy}"
        )


def _rules(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rules of a part of a tokenizer, including nested ones."""
    waiting = [component]
    while waiting:
        each = waiting.pop()
        yield each
        for key in ("normalizers", "pretokenizers", "decoders"):
            waiting += each.get(key) or []


def _written(rule: dict[str, Any]) -> int:
    """Number of characters that a rule writes at one place."""
    texts = (rule.get(key) for key in ("content", "prepend", "replacement", "prefix", "suffix"))
    return max((len(text) for text in texts if isinstance(text, str)), default=0)


def _longest_of_table(table: str) -> int:
    """Bytes of the longest replacement in a SentencePiece table: a trie, then NUL-terminated texts."""
    data = base64.b64decode(table)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)
