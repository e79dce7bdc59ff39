"""One answer while it runs with others: its sampler, its text, its times, and who follows it."""

from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from export.artifact.manifest import Precision
from serve.generation.answer import Answer
from serve.generation.decode import Started
from serve.generation.finite import check_finite
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, Prefilled, Timings, TokenText
from serve.generation.sampling import Sampler, logprobs_of
from serve.scheduling.requests import Follower


@dataclass
class Running:
    """An answer that runs; times are those that its client waits, with the steps of others.

    Attributes:
        follow: called with each event, in the scheduler's thread; an exception ends the answer.
        token: the token that the next step reads.
    """

    answer: Answer
    options: GenerationOptions
    sampler: Sampler
    follow: Follower
    timings: Timings
    precision: Precision
    token: int = 0
    began: float = field(default_factory=perf_counter)

    @classmethod
    def start(
        cls,
        answer: Answer,
        started: Started,
        options: GenerationOptions,
        follow: Follower,
        of: int = 0,
    ) -> "Running":
        """Choose the first token by the logits of prompt ``of`` of a batch; report it.

        Raises:
            CompExportError: the logits are not finite.
        """
        running = cls(answer, options, Sampler(options), follow, started.timings, started.precision)
        follow(Prefilled(answer.request.kept, started.timings))
        running.take(started.logits[of])
        return running

    @property
    def is_finished(self) -> bool:
        return self.answer.finish_reason is not None

    def take(self, logits: NDArray[np.float32]) -> None:
        """Choose the next token by ``logits [V]``, and report it; report the answer after its last token.

        Raises:
            CompExportError: the logits are not finite.
        """
        number = self.timings.decode_steps
        check_finite(logits, f"the logits of token {number + 1}", self.precision)
        self.token = self.sampler.pick(logits)
        text = self.answer.take(self.token)
        logprobs = logprobs_of(logits, self.token, self.options)
        self.follow(TokenText(self.token, text, logprobs))
        if self.is_finished:
            self.follow(self._finished())
        else:
            self.timings = replace(self.timings, decode_steps=number + 1)

    def _finished(self) -> Finished:
        spent = (perf_counter() - self.began) * 1000
        return self.answer.finished(replace(self.timings, decode_ms=spent))
