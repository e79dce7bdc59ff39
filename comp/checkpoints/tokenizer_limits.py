"""Bounds on what a tokenizer can make of a text, so that a few words stay a few tokens.

A ``tokenizer.json`` comes with a checkpoint. It can replace a character by a megabyte, frame every text
with a million tokens, or name tokens that are books. All real ones stay far below these bounds. They
do not cover regular expressions that are slow on some texts.
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

ODD = "a ☕ Ж \0 \U0010fffd"  # a tokenizer without a token for what it does not know raises here
LONGEST_PIECE = 64  # characters that one rule writes
MOST_GROWTH = 64  # times, of the rules of one list together
LONGEST_TOKEN = 4096  # characters
MOST_FRAME = 64  # tokens that every text gets
LONGEST_CHARACTER = 256  # bytes that a character table makes of one character
CHARACTERS_A_POSITION = 64  # of a text, for each position of the model
FEWEST_CHARACTERS = 2**16  # that are always read
LARGEST_ID = 2**24  # of a token; the library makes tables of as many places
# How long texts are cut off is no id, and is switched off.
LONG_NUMBER = re.compile(rb'(?<!"max_length")[:,\[]\s*(\d{8,19})\b')


@contextmanager
def tokenizer_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into a refusal; its panics are no ``Exception``."""
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
    """Refuse a ``tokenizer.json`` with an id that the library would fill memory for.

    Only long numbers are looked at, so that a file of megabytes costs milliseconds. A file that is not
    there is for its reader to refuse.

    Raises:
        CompExportError: names the id.
    """
    try:
        text = path.read_bytes()
    except OSError:
        return
    largest = max((int(found[1]) for found in LONG_NUMBER.finditer(text)), default=0)
    if largest > LARGEST_ID:
        raise CompExportError(
            f"{path} has a token of id {largest}, and {LARGEST_ID} is the largest: {remedy}"
        )


def check_tokenizer(tokenizer: Tokenizer, where: str, remedy: str) -> None:
    """Refuse a tokenizer that lets texts grow without bound, or that cannot read every text.

    Raises:
        CompExportError: names what grows, and by how much; or what the library says of a text.
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
    """The longest text that is tokenised at all, for a model with this number of positions."""
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
    """The rules of a part of a tokenizer, those inside of lists too."""
    waiting = [component]
    while waiting:
        each = waiting.pop()
        yield each
        for key in ("normalizers", "pretokenizers", "decoders"):
            waiting += each.get(key) or []


def _written(rule: dict[str, Any]) -> int:
    """Characters that a rule writes in one place."""
    texts = (rule.get(key) for key in ("content", "prepend", "replacement", "prefix", "suffix"))
    return max((len(text) for text in texts if isinstance(text, str)), default=0)


def _longest_of_table(table: str) -> int:
    """Bytes of the longest replacement in a table of SentencePiece: a trie, and texts that end in NUL."""
    held = base64.b64decode(table)
    texts = held[4 + int.from_bytes(held[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)
