"""Send a request to a model's worker, and follow its events in the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Finished, Generation, Prefilled, TokenText
from serve.scheduling.requests import CancelledError, Request
from serve.server.conversation import Conversation
from serve.server.errors import response_of
from serve.server.logs import RECORD
from serve.server.models import ServedModel
from serve.server.settings import Server


@dataclass(frozen=True)
class Asked:
    """A request to a model that is ready to be sent.

    Attributes:
        options: one for each choice.
        indices: whether the kept indices are wanted.
        adapts: whether the model's load chooses ``keep_factor``.
    """

    model: ServedModel
    conversation: Conversation
    options: Sequence[GenerationOptions]
    indices: bool
    adapts: bool = False


class Follow:
    """Events of one choice, as an asynchronous stream; a client that leaves ends the answer."""

    def __init__(self, server: Server, model: ServedModel) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._metrics, self._model = server.metrics, model.id
        self._record = RECORD.get()
        self._began = monotonic()
        self._first = 0.0  # seconds until the first token
        self.deadline = self._began + server.settings.request_seconds
        self.request: Request | None = None

    @property
    def options(self) -> GenerationOptions:
        """The options of the answer, with the factor that the load chose; known from its first event on."""
        assert self.request is not None
        return self.request.options

    def __call__(self, event: Event | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events to the last.

        Raises:
            CompExportError: why the request ended early.
        """
        try:
            while True:
                event = await self._events.get()
                self._measure(event)
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if self.request is not None:
                self.request.cancel()

    def _measure(self, event: Event | BaseException) -> None:
        passed = monotonic() - self._began
        if isinstance(event, Prefilled):
            self._first = passed
            self._metrics.first_token(self._model, passed)
            if self._record is not None:
                self._record.first_token()
        elif isinstance(event, Finished):
            self._metrics.finished(self._model, event.generation, self._first, passed)
            if self._record is not None:
                self._record.finished(event.generation)
        elif isinstance(event, BaseException):
            status = response_of(event).status_code
            self._metrics.failed(self._model, status)
            if self._record is not None:
                self._record.failed(status)


async def start(server: Server, asked: Asked) -> list[Follow]:
    """Read the images, encode the prompt, and queue a request for each choice.

    Raises:
        CompExportError: the request is refused, or the queue is full.
    """
    follows: list[Follow] = []
    try:
        images = [await server.picture(each) for each in asked.conversation.pictures]
        for options in asked.options:
            async with server.preparing:  # decoding takes memory: a few at a time
                work = await asyncio.to_thread(
                    asked.model.prepare, asked.conversation, images, options
                )
            follow = Follow(server, asked.model)
            follow.request = Request(work, options, follow, follow.deadline, asked.adapts)
            asked.model.worker.submit(follow.request)
            follows.append(follow)
    except BaseException as error:
        if isinstance(
            error, CompExportError
        ):  # as of answers that end early: 429 shows on dashboards
            server.metrics.failed(asked.model.id, response_of(error).status_code)
        for follow in follows:
            if follow.request is not None:
                follow.request.cancel()
        raise
    return follows


@asynccontextmanager
async def merged(
    follows: Sequence[Follow],
) -> AsyncIterator[AsyncIterator[tuple[int, Event | BaseException]]]:
    """Events of several choices as they come, with the number of the choice; errors are among them."""
    queue: asyncio.Queue[tuple[int, Event | BaseException]] = asyncio.Queue()

    async def pump(number: int, follow: Follow) -> None:
        try:
            async for event in follow.events():
                queue.put_nowait((number, event))
        except CompExportError as error:
            queue.put_nowait((number, error))

    async def events() -> AsyncIterator[tuple[int, Event | BaseException]]:
        left = len(follows)
        while left:
            number, event = await queue.get()
            left -= isinstance(event, Finished | BaseException)
            yield number, event

    pumps = [asyncio.create_task(pump(*each)) for each in enumerate(follows)]
    try:
        yield events()
    finally:
        for task in pumps:
            task.cancel()


@dataclass
class Collected:
    """A finished choice: its record, and its tokens with their log-probabilities."""

    generation: Generation
    tokens: list[TokenText]


async def collect(follow: Follow) -> Collected:
    """Wait for the end of a choice."""
    tokens: list[TokenText] = []
    async for event in follow.events():
        if isinstance(event, TokenText):
            tokens.append(event)
        elif isinstance(event, Finished):
            return Collected(event.generation, tokens)
    raise CancelledError("the answer ended without a result")


def extension_of(
    asked: Asked, generation: Generation | Prefilled, options: GenerationOptions
) -> dict[str, Any]:
    """The field ``comp_export`` of an answer: kept tokens, and times in milliseconds."""
    kept = generation.kept
    places = [
        {
            "place": name,
            "kept": int(tokens.size),
            **({"indices": tokens.tolist()} if asked.indices else {}),
        }
        for name, tokens in (kept.seen() if asked.conversation.pictures else [])
    ]
    result: dict[str, Any] = {"keep_factor": options.keep_factor, "image_tokens_kept": places}
    if isinstance(generation, Generation):
        result |= {
            "ttft_ms": round(generation.ttft_ms, 3),
            "tpot_ms": round(generation.tpot_ms, 3),
        }
    return result


def usage_of(generations: Sequence[Generation]) -> dict[str, Any]:
    """Numbers of tokens: the prompt once, and the answers of all choices."""
    prompt = generations[0]
    completion = sum(len(each.token_ids) for each in generations)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt.prompt_tokens + completion,
        "prompt_tokens_details": {
            "image_tokens": prompt.image_tokens,
            "cached_tokens": prompt.cached_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
