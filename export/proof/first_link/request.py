"""Requests of a user: those of a data set, and a built-in set of awkward ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from comp.data.example import Example, PairExample
from comp.plan import Task

Picture = Image.Image
EXAMPLES = 50  # of the data that transformers reads and answers; the awkward requests are added
QUESTION = "What is in the picture?"
STATEMENT = "Both pictures show the same thing."
TEXTS: dict[Task, str] = {
    "question": QUESTION,
    "caption": "",
    "retrieval": "a picture of two things",
    "statement": STATEMENT,
}
# Width, height: far from square both ways, odd sides, one pixel, larger than any model's input.
SHAPES = ((211, 9), (7, 180), (37, 53), (1, 1), (1200, 797))
# Words that templates, normalisers and pre-tokenizers treat differently.
WORDS = {
    "leading white space": "   what is this?",
    "trailing white space": "what is this?  \n",
    "line breaks and tabs": "what\n\nis\tthis?",
    "runs of spaces": "what   is    this?",
    "capitals": "WHAT Is ThIs?",
    "accents and emoji": "Qu'est-ce que c'est\u202f? naïve co\u0301te 猫 🐈\u200d⬛ Ω",
    "right to left": "מה זה? ما هذا؟",
    "punctuation": 'what\'s this -- a "cat", (or) {a} dog...?! #1 @2 50% <b>',
    "braces of a template": "what is {{ this }} {% if x %}or{% endif %} {prompt}?",
    "zero width": "what\u200bis\ufeff this\u00a0thing?",
}
LONG = 120  # words of a long question; texts of other tasks are shorter


@dataclass(frozen=True)
class Request:
    """The pictures and words of a user.

    Attributes:
        name: identifies it in a report.
        images: pictures in any mode.
        text: a question, a caption, a statement, or the beginning of a caption.
        awkward: whether it belongs to the built-in set, not to the data.
    """

    name: str
    images: tuple[Picture, ...]
    text: str
    awkward: bool = False


def request_of(example: Any, name: str) -> Request:
    """The request of an example of any task."""
    if isinstance(example, PairExample):
        return Request(name, tuple(example.images), example.statement)
    assert isinstance(example, Example)
    # Retrieval has its caption as the answer, and no question.
    return Request(name, (example.image,), example.question or example.answer)


class Requests(Sequence[Request]):
    """The requests of the data, then the awkward ones.

    A picture of the data is opened each time it is read, so that they are never all in memory.
    """

    def __init__(
        self, examples: Any, count: int, task: Task, special_tokens: Sequence[str] = ()
    ) -> None:
        """The first ``count`` examples, then ``awkward``."""
        self._examples, self._task = examples, task
        self._of_data = min(count, len(examples))
        self._awkward = tuple(awkward(task, special_tokens))

    def __len__(self) -> int:
        return self._of_data + len(self._awkward)

    def __getitem__(self, index: int) -> Request:  # type: ignore[override]  # no slices
        if index >= self._of_data:
            return self._awkward[index - self._of_data]
        return of_data(self._examples[index], f"example {index}", self._task)


def of_data(example: Any, name: str, task: Task) -> Request:
    """The request of an example; for a caption without a beginning."""
    request = request_of(example, name)
    if task == "caption":
        return replace(request, text="")
    return replace(request, text=example.answer) if task == "retrieval" else request


def awkward(task: Task, special_tokens: Sequence[str] = ()) -> Iterator[Request]:
    """Yield requests that are most easily processed wrongly; the same ones each time.

    Args:
        task: task of the model.
        special_tokens: special tokens of its tokenizer, used in the texts.
    """
    several = 2 if task == "statement" else 1
    usual = TEXTS[task]

    def pictures(width: int, height: int, mode: str = "RGB") -> tuple[Picture, ...]:
        return tuple(picture(width, height, seed, mode) for seed in range(several))

    for width, height in SHAPES:
        yield _awkward(f"picture of {width}x{height}", pictures(width, height), usual)
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "1"):
        yield _awkward(f"picture of mode {mode}", pictures(61, 47, mode), usual)
    plain = pictures(64, 48)
    for name, words in WORDS.items():
        yield _awkward(name, plain, words)
    for token in special_tokens:
        yield _awkward(f"{token} in the words", plain, f"what is {token} this?")
    if task == "question":
        yield _awkward("long prompt", plain, " ".join(["what is on the left of it"] * (LONG // 6)))
    else:
        yield _awkward("long text", plain, "a red cat and a dog on a table")
    yield _awkward("two pictures", tuple(picture(50 + s, 40, s) for s in range(2)), usual)
    yield _awkward("no picture", (), usual or QUESTION)


def _awkward(name: str, images: tuple[Picture, ...], text: str) -> Request:
    return Request(name, images, text, awkward=True)


def picture(width: int, height: int, seed: int, mode: str = "RGB") -> Picture:
    """A picture with soft shapes and a hard edge; with transparency in modes that have it."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA"):
        return smooth.convert(mode)
    opaque = smooth.convert("RGB")
    opaque.paste((250, 10, 40), (width // 4, height // 4, width // 2, height // 2))
    return opaque.convert(mode)
