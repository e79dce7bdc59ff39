"""A LLaVA's prompts, and what runs them: a prefill, then greedy steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.parity import Answered, Greedy


@dataclass(frozen=True)
class Question:
    """A tokenised prompt with its pictures."""

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class Prefilled:
    """What a prefill of one prompt gave.

    Attributes:
        logits: of the last token, ``[V]``.
        kept: original indices kept at each drop place, ascending, ``[k]``.
        scores: of every original token at each place, ``[N]`` (NaN: gone); may be empty.
        state: whatever ``decode`` needs.
        ranking_margins: as of ``export.parity.Answered``.
    """

    logits: np.ndarray
    kept: list[np.ndarray]
    scores: list[np.ndarray]
    state: Any
    ranking_margins: list[float] = field(default_factory=list)


class PromptRunner(ABC):
    """A form of a LLaVA (see ``export.parity.Runner``)."""

    @abstractmethod
    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        """``pixel_values [I, 3, H, W]`` float32, ``input_ids [1, N]`` int64."""

    @abstractmethod
    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Greedy:
        """Greedy tokens, up to and with EOS."""

    def ask(self, question: Question, max_new_tokens: int) -> Answered:
        """One prompt, greedily answered."""
        found = self.prefill(question.pixel_values, question.input_ids)
        said = self.decode(found, max_new_tokens)
        return Answered(
            found.logits,
            found.kept,
            found.scores,
            said.tokens,
            step_margins=said.margins,
            ranking_margins=found.ranking_margins,
        )
