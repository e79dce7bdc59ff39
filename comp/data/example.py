"""Examples that every dataset yields: visual questions, captions and statements."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from comp.errors import CompExportError


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


def check_examples(task: str, examples: Sequence[AnyExample]) -> None:
    """Check that a user's examples are of a task, by the first one.

    Raises:
        CompExportError: there is none, or it is of another class.
    """
    wanted = PairExample if task == "statement" else Example
    first = examples[0] if len(examples) else None
    if not isinstance(first, wanted):
        what = "there is none" if first is None else f"the first is a {type(first).__name__}"
        raise CompExportError(
            f"the task {task} needs examples of comp.{wanted.__name__}, and {what}"
        )
