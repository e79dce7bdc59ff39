"""Which part of EmojiScenes belongs to which task."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from comp.data.emoji_scenes.captions import CaptionExamples
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.statements import EmojiStatements

EMBEDDED: dict[str, Callable[[str, int], Sequence[Any]]] = {
    "question": EmojiScenes,
    "retrieval": CaptionExamples,
    "caption": partial(CaptionExamples, all_captions=True),
    "statement": EmojiStatements,
}


def embedded_examples(task: str, split: str, size: int) -> Sequence[Any]:
    """So many examples of a task: ``Example`` or ``PairExample``."""
    return EMBEDDED[task](split, size)
