"""Which part of EmojiScenes belongs to which task."""

from collections.abc import Callable, Sequence
from typing import Any

from comp.data.captions import CaptionExamples, EmojiCaptions
from comp.data.emoji_scenes import EmojiScenes
from comp.data.statements import EmojiStatements

EMBEDDED: dict[str, Callable[[str, int], Sequence[Any]]] = {
    "question": EmojiScenes,
    "retrieval": CaptionExamples,
    "caption": EmojiCaptions,
    "statement": EmojiStatements,
}


def embedded_examples(task: str, split: str, size: int) -> Sequence[Any]:
    """So many examples of a task: ``Example``, ``Captioned`` or ``PairExample``."""
    return EMBEDDED[task](split, size)
