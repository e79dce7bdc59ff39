"""Prompts of a LLaVA, and the base of their runners: a prefill, then greedy steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.proof.compare import Answered, greedy
from export.proof.outputs import logits


@dataclass(frozen=True)
class Question:
    """A tokenised prompt ``[1, N]`` with its pictures; each image is one token."""

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class Prefilled:
    """The result of one prompt's prefill.

    Attributes:
        logits: logits of the last token, ``[V]``.
        kept: original indices kept at each drop place, ascending, ``[k]``; if the model selects image
            tokens, first of all the selected tower tokens, image by image.
        scores: scores of every original token at each place, ``[N]`` (NaN: dropped before); may be empty.
        state: for ``step``.
        ranking_margins: as in ``export.proof.compare.Answered``.
    """

    logits: np.ndarray
    kept: list[np.ndarray]
    scores: list[np.ndarray]
    state: Any
    ranking_margins: list[float] = field(default_factory=list)


class PromptRunner(ABC):
    """A LLaVA in one runtime (see ``export.proof.compare.Runner``).

    Attributes:
        image: the image token, and the number of positions an image takes.
        eos: tokens that end an answer.
    """

    image: tuple[int, int]
    eos: tuple[int, ...]

    @abstractmethod
    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        """``pixel_values [I, 3, H, W]`` float32, ``input_ids [1, N]`` int64."""

    @abstractmethod
    def step(self, token: int, state: Any) -> tuple[np.ndarray, Any]:
        """Run one more token: logits ``[V]``, and the next state."""

    def ask(self, question: Question, max_new_tokens: int) -> Answered:
        """Answer one prompt greedily."""
        token, count = self.image
        repeats = np.where(question.input_ids[0] == token, count, 1)
        ids = np.repeat(question.input_ids, repeats, axis=1)
        prefilled = self.prefill(question.pixel_values, ids)
        text = greedy(prefilled.logits, prefilled.state, self.step, self.eos, max_new_tokens)
        return Answered(
            (logits(prefilled.logits),),
            prefilled.kept,
            prefilled.scores,
            text.tokens,
            step_margins=text.margins,
            ranking_margins=prefilled.ranking_margins,
            of_image=ids[0] == token,
        )


def places_in_all(kept: np.ndarray, tower_tokens: int, prompts: int = 1) -> np.ndarray:
    """Offset the indices ``kept [I, k]`` of each image to those among all images of its prompt.

    Returns:
        ``[prompts, I / prompts · k]``, ascending.
    """
    images = len(kept) // prompts
    of_prompts = kept.reshape(prompts, images, kept.shape[1])
    return (of_prompts + np.arange(images)[:, None] * tower_tokens).reshape(prompts, -1)
