"""A LLaVA's prompts, and what runs them: a prefill, then greedy steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.verify.compare import Answered, Greedy


@dataclass(frozen=True)
class Question:
    """A tokenised prompt ``[1, N]`` with its pictures; an image is one token of it."""

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class Prefilled:
    """What a prefill of one prompt gave.

    Attributes:
        logits: of the last token, ``[V]``.
        kept: original indices kept at each drop place, ascending, ``[k]``; first of all which of the
            tower's tokens stayed as they are, those of one image after those of the other, where any go.
        scores: of every original token at each place, ``[N]`` (NaN: gone); may be empty.
        state: whatever ``decode`` needs.
        ranking_margins: as of ``export.verify.compare.Answered``.
    """

    logits: np.ndarray
    kept: list[np.ndarray]
    scores: list[np.ndarray]
    state: Any
    ranking_margins: list[float] = field(default_factory=list)


class PromptRunner(ABC):
    """A form of a LLaVA (see ``export.verify.compare.Runner``).

    Attributes:
        image: the token that stands for an image, and how many places an image takes.
    """

    image: tuple[int, int]

    @abstractmethod
    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        """``pixel_values [I, 3, H, W]`` float32, ``input_ids [1, N]`` int64."""

    @abstractmethod
    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Greedy:
        """Greedy tokens, up to and with EOS."""

    def ask(self, question: Question, max_new_tokens: int) -> Answered:
        """One prompt, greedily answered."""
        token, count = self.image
        repeats = np.where(question.input_ids[0] == token, count, 1)
        ids = np.repeat(question.input_ids, repeats, axis=1)
        found = self.prefill(question.pixel_values, ids)
        said = self.decode(found, max_new_tokens)
        return Answered(
            found.logits,
            found.kept,
            found.scores,
            said.tokens,
            step_margins=said.margins,
            ranking_margins=found.ranking_margins,
            of_image=ids[0] == token,
        )


def places_in_all(kept: np.ndarray, tower_tokens: int, prompts: int = 1) -> np.ndarray:
    """Which tokens ``kept [I, k]`` of each image are among those of all images of its prompt.

    Returns:
        ``[prompts, I / prompts · k]``, ascending.
    """
    images = len(kept) // prompts
    of_prompts = kept.reshape(prompts, images, kept.shape[1])
    return (of_prompts + np.arange(images)[:, None] * tower_tokens).reshape(prompts, -1)
