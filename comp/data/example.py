"""Examples that every dataset yields: visual questions, captions and statements."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import overload

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


@dataclass(frozen=True)
class CheckedExamples(Sequence[AnyExample]):
    """A user's examples, each of them checked when it is taken. Slices take none.

    Attributes:
        examples: has ``len()`` and ``[index]``, and need not have more.
        wanted: class of an example.
        places: which of the examples, in order.
    """

    examples: Sequence[AnyExample]
    wanted: type[AnyExample]
    places: range

    @classmethod
    def of(cls, task: str, examples: Sequence[AnyExample]) -> "CheckedExamples":
        """Check that a user's examples are a sequence, and that the first is of the task.

        Raises:
            CompExportError: they are no sequence, there is none, or it is of another class.
        """
        check_sequence(examples)
        wanted = PairExample if task == "statement" else Example
        needs = f"the task {task} needs examples of comp.{wanted.__name__}"
        if len(examples) == 0:
            raise CompExportError(f"{needs}, and there is none")
        first = examples[0]
        if not isinstance(first, wanted):
            raise CompExportError(f"{needs}, and the first is a {type(first).__name__}")
        return cls(examples, wanted, range(len(examples)))

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> AnyExample: ...
    @overload
    def __getitem__(self, index: slice) -> "CheckedExamples": ...
    def __getitem__(self, index: int | slice) -> "AnyExample | CheckedExamples":
        if isinstance(index, slice):
            return replace(self, places=self.places[index])
        place = self.places[index]
        example = self.examples[place]
        wrong = _wrong(example, self.wanted)
        if wrong is not None:
            raise CompExportError(f"data: example {place} {wrong}")
        return example


def check_sequence(examples: object) -> None:
    """Refuse examples that are no sequence, such as a generator.

    Raises:
        CompExportError: names the class.
    """
    indexed = isinstance(examples, Sized) and hasattr(examples, "__getitem__")
    if not indexed or isinstance(examples, Mapping | bytes):
        raise CompExportError(
            f"data is a {type(examples).__name__}: give a file, or a sequence of comp.Example or "
            "comp.PairExample, such as a list"
        )


def _wrong(example: object, wanted: type[AnyExample]) -> str | None:
    """Return what is wrong with an example; ``None`` if nothing is."""
    if not isinstance(example, wanted):
        return f"is a {type(example).__name__}: give a comp.{wanted.__name__}"
    if isinstance(example, Example):
        images: Sequence[object] = (example.image,)
        texts = {"question": example.question, "answer": example.answer, "kind": example.kind}
    else:
        images, texts = example.images, {"statement": example.statement, "kind": example.kind}
        if not isinstance(example.answer, bool):
            return f"has the answer {example.answer!r}: give True or False"
    other = next((each for each in images if not isinstance(each, Image.Image)), None)
    if other is not None:
        return f"has a {type(other).__name__} for an image: open it with PIL.Image.open"
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"has the {name} {text!r}: give text"
    return None
