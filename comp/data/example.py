"""One visual question, as every dataset of the project yields it."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One image (RGB) with one question, its answer, and the kind of question."""

    image: Image.Image
    question: str
    answer: str
    kind: str
