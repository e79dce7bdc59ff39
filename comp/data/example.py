"""Examples that every dataset yields: visual questions, captions and statements."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One image (RGB) with one question, its answer, and the kind of question.

    Attributes:
        answers: all answers of annotators, if there are several (ten in VQAv2, five captions in COCO);
            otherwise empty.
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
