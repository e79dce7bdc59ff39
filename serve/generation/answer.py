"""Collect the tokens of one answer until it ends."""

from dataclasses import dataclass

from serve.generation.detokenize import Decoder, TextStream
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, FinishReason, Generation, Kept, Timings


@dataclass(frozen=True)
class AnswerRequest:
    """Facts about a prompt when its answer starts.

    Attributes:
        prompt_tokens, image_tokens: numbers of tokens; image tokens count as prompt tokens if they are
            part of the prompt.
        kept: the kept tokens.
        ends: tokens that end an answer.
        room: positions left for the answer.
        cached_tokens: tokens of the prompt that were not read again.
    """

    prompt_tokens: int
    image_tokens: int
    kept: Kept
    ends: tuple[int, ...]
    room: int
    cached_tokens: int = 0


class Answer:
    """Collects the tokens of one sequence and the reason of its end."""

    def __init__(
        self, tokenizer: Decoder, request: AnswerRequest, options: GenerationOptions
    ) -> None:
        self._stream = TextStream(tokenizer, options.stop)
        self._ends = () if options.ignore_eos else request.ends
        self._most = min(options.max_new_tokens, request.room)
        self._ids: list[int] = []
        self.request = request
        self.finish_reason: FinishReason | None = None

    def take(self, token_id: int) -> str:
        """Add a token; return the text to show, and set ``finish_reason`` after the last."""
        if token_id in self._ends:
            self.finish_reason = "eos"
            return ""
        self._ids.append(token_id)
        text = self._stream.add(token_id)
        if self._stream.stopped:
            self.finish_reason = "stop"
        elif len(self._ids) >= self._most:
            self.finish_reason = "length"
        return text

    def finished(self, timings: Timings) -> Finished:
        """The record of the answer, with the text that was held back."""
        if self.finish_reason is None:
            raise RuntimeError("the answer is not finished")
        rest = self._stream.finish()
        generation = Generation(
            text=self._stream.text,
            token_ids=tuple(self._ids),
            finish_reason=self.finish_reason,
            prompt_tokens=self.request.prompt_tokens,
            image_tokens=self.request.image_tokens,
            kept=self.request.kept,
            timings=timings,
            cached_tokens=self.request.cached_tokens,
        )
        return Finished(rest, generation)
