"""Generate one answer token by token, or several in step, with any backend."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact.manifest import Precision
from serve.generation.answer import Answer
from serve.generation.finite import check_finite
from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Finished, Generation, Prefilled, Timings, TokenText
from serve.generation.sampling import Sampler, logprobs_of

AFTER_END = 0  # input of a finished sequence while the others of its batch continue


@dataclass(frozen=True)
class Started:
    """A batch of prompts after their prefill.

    Attributes:
        logits: logits of the next token of each, ``[B, V]``.
        state: for ``step``; freed by ``release``.
        step: runs one token per sequence with a state; returns the logits and the next state.
        release: frees what the state holds; called once, with the last state.
        timings: times until now.
        precision: precision of the artifact, for errors.
    """

    logits: NDArray[np.float32]
    state: Any
    step: Callable[[Sequence[int], Any], tuple[NDArray[np.float32], Any]]
    release: Callable[[Any], None]
    timings: Timings
    precision: Precision

    def pick(self, sampler: Sampler, logits: NDArray[np.float32], token: int, of: str = "") -> int:
        """Choose the next token by ``logits [V]``: token number ``token`` of an answer, from 0.

        Raises:
            CompExportError: the logits are not finite; names the token and, by ``of``, the answer.
        """
        check_finite(logits, f"the logits of token {token + 1}{of}", self.precision)
        return sampler.pick(logits)


def stream_answer(answer: Answer, started: Started, options: GenerationOptions) -> Iterator[Event]:
    """Yield ``Prefilled``, one ``TokenText`` per token, and ``Finished``; times exclude the caller's.

    Raises:
        CompExportError: at the token whose logits are not finite; the state is released.
    """
    state, decode_ms, steps = started.state, 0.0, 0
    try:
        start = perf_counter()
        sampler = Sampler(options)
        logits = started.logits
        token_id = started.pick(sampler, logits[0], steps)
        before = started.timings
        timings = replace(before, prefill_ms=before.prefill_ms + _ms_since(start))
        yield Prefilled(answer.request.kept, timings)
        while True:
            start = perf_counter()
            text = answer.take(token_id)
            decode_ms += _ms_since(start)
            # The caller's time is not measured.
            yield TokenText(token_id, text, logprobs_of(logits[0], token_id, options))
            if answer.finish_reason is not None:
                break
            start = perf_counter()
            logits, state = started.step([token_id], state)
            steps += 1
            token_id = started.pick(sampler, logits[0], steps)
            decode_ms += _ms_since(start)
    finally:  # also if the caller stops early
        started.release(state)
    yield answer.finished(replace(timings, decode_ms=decode_ms, decode_steps=steps))


def finished(events: Iterator[Event]) -> Generation:
    """The answer at the end of a stream."""
    for event in events:
        if isinstance(event, Finished):
            return event.generation
    raise AssertionError("a stream ends with Finished")


def answer_in_step(
    answers: Sequence[Answer],
    started: Started,
    options: GenerationOptions,
    streams: Sequence[int],
) -> list[Generation]:
    """Generate all answers of a batch; ``streams`` are the requests' indices, which seed their draws.

    Raises:
        CompExportError: names the first request whose logits are not finite; the state is released.
    """
    logits, state, steps = started.logits, started.state, 0
    try:
        start = perf_counter()
        samplers = [Sampler(options, stream) for stream in streams]
        while True:
            tokens = [AFTER_END] * len(answers)
            for row, answer in enumerate(answers):
                if answer.finish_reason is None:
                    of = f" of request {streams[row] + 1}"
                    tokens[row] = started.pick(samplers[row], logits[row], steps, of)
                    answer.take(tokens[row])
            if all(answer.finish_reason is not None for answer in answers):
                break
            logits, state = started.step(tokens, state)
            steps += 1
    finally:
        started.release(state)
    timings = replace(started.timings, decode_ms=_ms_since(start), decode_steps=steps)
    return [answer.finished(timings).generation for answer in answers]


def _ms_since(start: float) -> float:
    return (perf_counter() - start) * 1000
