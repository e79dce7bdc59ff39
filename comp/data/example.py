"""One visual question, caption or statement, as every dataset of the project yields it."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One image (RGB) with one question, its answer, and the kind of question.

    ``answers``: all that people gave, where several were asked (ten of VQAv2, five captions of COCO); else
    empty, and ``answer`` is the only one.
    """

    image: Image.Image
    question: str
    answer: str
    kind: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairExample:
    """Two images (RGB) and a statement about both, true or false."""

    images: tuple[Image.Image, Image.Image]
    statement: str
    answer: bool
    kind: str


AnyExample = Example | PairExample
