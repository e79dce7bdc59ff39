"""Generate BLIP's answers and captions from an image and, for answers, a question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageSource
from comp.errors import CompExportError
from export.artifact.caches import PAST, PRESENT
from export.artifact.encoder_manifest import DecoderInfo
from export.artifact.manifest import computed_in
from serve.backends.base import RequestSize
from serve.engines.encoder import EncoderEngine, kept_of, ms_since
from serve.engines.encoder_graphs import Graphs
from serve.engines.encoder_texts import by_length
from serve.generation.answer import Answer, AnswerRequest
from serve.generation.decode import Started, answer_in_step, finished, stream_answer
from serve.generation.finite import check_finite
from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Generation, Timings, TowerKept

DEFAULT_OPTIONS = GenerationOptions()
Request = tuple[Sequence[ImageSource], str]  # one image, question or beginning
KINDS = ("key", "value")


@dataclass(frozen=True)
class _Caches:
    """The decoder's inputs besides tokens: its own keys and values, and those of cross-attention."""

    past: dict[str, Any]
    cross: dict[str, Any]


class BlipGenerator(EncoderEngine):
    """Answers a question about an image, or captions it; as ``serve.Engine``.

    A caption may be given a beginning as its prompt, and continues it.
    """

    def __init__(self, graphs: Graphs, threads: int | None = None) -> None:
        super().__init__(graphs, threads)
        decoder = graphs.manifest.decoder
        assert decoder is not None
        self._decoder: DecoderInfo = decoder

    @property
    def asks(self) -> bool:
        """Whether it takes a question."""
        return self.manifest.task == "question"

    def generate(
        self,
        images: Sequence[ImageSource],
        prompt: str = "",
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Generation:
        """Generate one answer or caption. Arguments and errors as for ``stream``."""
        return finished(self.stream(images, prompt, options))

    def stream(
        self,
        images: Sequence[ImageSource],
        prompt: str = "",
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Event]:
        """Generate one answer or caption, token by token.

        Args:
            images: one picture.
            prompt: the question, or the beginning of the caption (may be empty).
            options: options of generation.

        Raises:
            CompExportError: at the call, for another number of images, an unreadable one, or a prompt
                that does not fit; at the token whose logits are not finite.
        """
        start = perf_counter()
        self._check(len(images), options)
        ids = self._encode(prompt)
        self._fit(1, ids.size, options)
        pixels = self.pixels(images)
        return self._stream(pixels, ids, options, ms_since(start))

    def _stream(
        self,
        pixels: NDArray[np.float32],
        ids: NDArray[np.int64],
        options: GenerationOptions,
        prepare_ms: float,
    ) -> Iterator[Event]:
        started, requests = self._start(pixels, ids[None], prepare_ms)
        answer = Answer(self.texts.tokenizer, requests[0], options)
        yield from stream_answer(answer, started, options)

    def generate_batch(
        self,
        requests: Sequence[Request],
        options: GenerationOptions = DEFAULT_OPTIONS,
        batch_size: int = 16,
    ) -> list[Generation]:
        """Answer many requests, those of equal length together; answers come in the order of requests.

        The timings of an answer are those of its batch. Arguments and errors as for ``stream``.
        """
        for images, _ in requests:
            self._check(len(images), options)
        ids = [self._encode(prompt) for _, prompt in requests]
        answers: dict[int, Generation] = {}
        groups = by_length(ids, batch_size)
        for places, batch in groups:
            self._fit(len(places), batch.shape[1], options)
        for places, batch in groups:
            start = perf_counter()
            pixels = self.pixels([requests[place][0][0] for place in places])
            started, answer_requests = self._start(pixels, batch, ms_since(start))
            rows = [Answer(self.texts.tokenizer, each, options) for each in answer_requests]
            answers.update(zip(places, answer_in_step(rows, started, options, places), strict=True))
        return [answers[place] for place in range(len(requests))]

    def next_token_logits(
        self, images: Sequence[ImageSource], prompt: str = ""
    ) -> NDArray[np.float32]:
        """Logits ``[V]`` of the first token. Arguments and errors as for ``stream``."""
        self._check(len(images), DEFAULT_OPTIONS)
        ids = self._encode(prompt)
        self._fit(1, ids.size, DEFAULT_OPTIONS)
        started, _ = self._start(self.pixels(images), ids[None], 0.0)
        started.release(started.state)
        return started.logits[0]

    def _check(self, images: int, options: GenerationOptions) -> None:
        if images != 1:
            raise CompExportError(f"{images} images, and this model looks at one: give 1")
        if options.keep_factor != 1:
            raise CompExportError(
                f"keep_factor {options.keep_factor}: BLIP's graphs have their keep ratios built in; "
                "leave it at 1"
            )

    def _fit(self, batch: int, length: int, options: GenerationOptions) -> None:
        """Refuse prompts of one length that exceed the limits of the graphs."""
        new_tokens = min(options.max_new_tokens, self._room(1 if self.asks else length))
        self.graphs.check(RequestSize(batch, 1, length, new_tokens))

    def _room(self, first: int) -> int:
        """Positions of the decoder after its first tokens."""
        return self._decoder.max_position_embeddings - first

    def _encode(self, prompt: str) -> NDArray[np.int64]:
        """The question with its special tokens; or the decoder's start token and a caption's beginning."""
        if self.asks:
            return self.texts.encode(prompt, "question")
        start = np.array([self._decoder.bos_token_id], dtype=np.int64)
        if not prompt.strip():
            return start
        ids = self.texts.encode(prompt, "beginning")
        beginning = np.concatenate([start, ids[1:-1]])  # without special tokens
        if beginning.size >= self._decoder.max_position_embeddings:
            raise CompExportError(
                f"the beginning has {beginning.size} tokens, the model has "
                f"{self._decoder.max_position_embeddings} positions: shorten it"
            )
        return beginning

    def _start(
        self, pixels: NDArray[np.float32], ids: NDArray[np.int64], prepare_ms: float
    ) -> tuple[Started, list[AnswerRequest]]:
        """Run images ``[B, 3, S, S]`` with prompts ``[B, L]`` up to the first token's logits."""
        start = perf_counter()
        seen = self.graphs.run("vision_model", {"pixel_values": pixels})
        vision_ms = ms_since(start)
        start = perf_counter()
        memory = seen["last_hidden_state"]
        check_finite(memory, "the states of the image", self.manifest.precision)
        kept = kept_of("vision", [seen])
        first = ids
        if self.asks:
            feeds = {"input_ids": ids, "encoder_hidden_states": memory}
            read = self.graphs.run("text_encoder", feeds)
            memory = read["last_hidden_state"]
            kept |= kept_of("language", [read])
            first = np.full((len(ids), 1), self._decoder.bos_token_id, dtype=np.int64)
        cross = self.graphs.keep("cross_kv", {"encoder_hidden_states": memory})
        logits, state = self._run(first, _Caches(self._empty(len(ids)), cross))
        timings = Timings(prepare_ms, vision_ms, ms_since(start))
        room = self._room(first.shape[1])
        requests = [
            AnswerRequest(
                prompt_tokens=ids.shape[1],
                image_tokens=self.manifest.vision.tokens,
                kept=TowerKept({place: rows[row : row + 1] for place, rows in kept.items()}),
                ends=(self._decoder.eos_token_id,),
                room=room,
            )
            for row in range(len(ids))
        ]
        precision = self.manifest.precision
        started = Started(logits, state, self._step, lambda state: None, timings, precision)
        return started, requests

    def _step(self, tokens: Sequence[int], state: _Caches) -> tuple[NDArray[np.float32], _Caches]:
        return self._run(np.array(tokens, dtype=np.int64)[:, None], state)

    def _run(self, ids: NDArray[np.int64], caches: _Caches) -> tuple[NDArray[np.float32], _Caches]:
        """Present tokens ``[B, N]`` to logits ``[B, V]`` and the caches after them."""
        logits, present = self.graphs.step(
            "decoder_model", {"input_ids": ids} | caches.past | caches.cross
        )
        past = {name.replace(PRESENT, PAST): value for name, value in present.items()}
        return logits[:, -1], _Caches(past, caches.cross)

    def _empty(self, batch: int) -> dict[str, Any]:
        shape = self._decoder
        # Empty arrays; bfloat16 engines, whose type NumPy lacks, ignore their type.
        dtype = np.float32 if computed_in(self.manifest.precision) == "float32" else np.float16
        return {
            f"{PAST}{layer}.{kind}": np.zeros((batch, heads, 0, shape.head_dim), dtype)
            for layer, heads in enumerate(shape.num_attention_heads)
            for kind in KINDS
        }
