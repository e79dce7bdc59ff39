"""One answer in the making: tokens in, text out, until something ends it."""

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.llava_manifest import LlavaManifest
from serve.options import GenerationOptions
from serve.prompt import EncodedPrompt
from serve.results import Finished, FinishReason, Generation, KeptTokens, Timings
from serve.stream_text import TextStream


class Answer:
    """Collects the tokens of one sequence and says why it ended."""

    def __init__(
        self,
        manifest: LlavaManifest,
        tokenizer: Tokenizer,
        prompt: EncodedPrompt,
        kept: dict[int, NDArray[np.int64]],
        options: GenerationOptions,
    ) -> None:
        """``kept`` are the prompt places that stayed at each drop place."""
        self._stream = TextStream(tokenizer, options.stop)
        self._eos = () if options.ignore_eos else manifest.tokens.eos_token_ids
        room = manifest.decoder.max_position_embeddings - prompt.length
        self._most = min(options.max_new_tokens, room)
        self._ids: list[int] = []
        self._prompt = prompt
        places = prompt.vision.reshape(-1, manifest.vision.image_tokens)
        self.kept = KeptTokens(kept, tuple(places))
        self.finish_reason: FinishReason | None = None

    def take(self, token_id: int) -> str:
        """Add a token; return the text to show, and set ``finish_reason`` when it was the last."""
        if token_id in self._eos:
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
        """The record of the answer, with the text that was still held back."""
        if self.finish_reason is None:
            raise RuntimeError("the answer is not finished")
        rest = self._stream.finish()
        generation = Generation(
            text=self._stream.text,
            token_ids=tuple(self._ids),
            finish_reason=self.finish_reason,
            prompt_tokens=self._prompt.length,
            image_tokens=int(self._prompt.vision.size),
            kept=self.kept,
            timings=timings,
        )
        return Finished(rest, generation)
