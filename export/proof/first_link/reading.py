"""The steps of one side of the first link, from a user's pictures and words to the answer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.proof.first_link.request import Picture, Request
from export.proof.outputs import Output

Step = str
STEPS: tuple[Step, ...] = (
    "template",
    "tokens",
    "resize",
    "normalise",
    "logits",
    "embeddings",
    "scores",
    "answer",
    "stop",
    "text",
)


@dataclass(frozen=True)
class Outputs:
    """The outputs of the model.

    Attributes:
        values: by step, the numbers to compare: ``logits`` of the first token, of a statement or of a
            match, or ``embeddings`` and ``scores``.
        tokens: tokens of a greedy answer, without its end; ``None`` if nothing is generated.
        ended: whether the answer ended with a stop token.
        text: the answer.
        margins: margin of each token's logit over the next best; may be empty.
    """

    values: dict[Step, Output]
    tokens: tuple[int, ...] | None = None
    ended: bool = False
    text: str = ""
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A request as one side processed it.

    Attributes:
        input_ids: ``[N]``, with image tokens expanded.
        pixel_values: ``[I, C, S, S]`` float32; ``None`` without a picture.
        prompt: the text after the template, if there is one.
        outputs: outputs of the model; ``None`` if it was not run.
    """

    input_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32] | None
    prompt: str | None = None
    outputs: Outputs | None = None


@dataclass(frozen=True)
class Refused:
    """The request was refused by this side."""

    reason: str


class Side(Protocol):
    """One way from a request to an answer.

    Attributes:
        name: name in the report.
        not_run: why its model is not run; empty if it is.
    """

    name: str
    not_run: str

    def read(self, request: Request, max_new_tokens: int, run: bool) -> Reading | Refused:
        """Process a request, and answer it if ``run`` is true."""
        ...

    def resized(self, images: tuple[Picture, ...]) -> list[NDArray[np.uint8]]:
        """The pictures ``[H, W, C]`` before they are rescaled and normalised."""
        ...


class Reference(Side, Protocol):
    """The side that others are compared with."""

    def nudged(self, request: Request, max_new_tokens: int, seed: int) -> Reading | Refused:
        """As ``read``, with inputs perturbed by no more than rounding; differently for each seed."""
        ...


@dataclass
class Answers:
    """The readings of all requests by one side, in order; ``not_run`` says why its model was not run."""

    name: str
    readings: list[Reading | Refused] = field(default_factory=list)
    not_run: str = ""


def images_in(pixel_values: Any) -> Iterator[NDArray[Any]]:
    """Yield the images ``[C, S, S]`` in the output of an image processor, where they may be nested."""
    values = np.asarray(pixel_values)
    yield from values.reshape(-1, *values.shape[-3:])
