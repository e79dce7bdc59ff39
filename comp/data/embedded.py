"""Choose the part of EmojiScenes for a task."""

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
    """Return ``size`` examples of a task, each an ``Example`` or a ``PairExample``."""
    return EMBEDDED[task](split, size)
