"""``POST /v1/chat/completions``: answers as OpenAI's clients read them, whole or streamed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Finished, Generation, Prefilled, TokenText
from serve.scheduling.adaptive import AUTO
from serve.server.answers import Asked, Follow, collect, extension_of, merged, start, usage_of
from serve.server.conversation import conversation_of
from serve.server.errors import response_of
from serve.server.fields import check_fields
from serve.server.models import GENERATES, ServedModel
from serve.server.schemas import ChatRequest
from serve.server.settings import Server, factor_of, options_of

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
DONE = "data: [DONE]\n\n"


def asked_of(server: Server, request: ChatRequest) -> Asked:
    """Check a request, and resolve its model and options.

    Raises:
        ApiError: names the field that cannot be served.
    """
    model = server.models.called(request.model)
    model.check_serves(GENERATES)
    check_fields(request)
    conversation = conversation_of(request.messages, server.settings.max_images)
    factor = factor_of(server, model, request, conversation)
    options = options_of(
        server,
        request,
        factor,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        choices=request.n or 1,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    return Asked(model, conversation, options, request.return_kept_indices, factor == AUTO)


@dataclass(frozen=True)
class Head:
    """The fields that all parts of a response share."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, model: ServedModel) -> "Head":
        """A new response."""
        return cls(f"chatcmpl-{uuid4().hex}", int(time()), model.id)

    def body(self, kind: str, **more: Any) -> dict[str, Any]:
        """The response, or a chunk of it."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            **more,
        }


async def completion(asked: Asked, follows: list[Follow]) -> dict[str, Any]:
    """Wait for all choices, and return the response."""
    done = await asyncio.gather(*(collect(follow) for follow in follows))
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": each.generation.text, "refusal": None},
            "logprobs": _logprobs(asked, each.tokens),
            "finish_reason": REASONS[each.generation.finish_reason],
        }
        for number, each in enumerate(done)
    ]
    generations = [each.generation for each in done]
    return Head.of(asked.model).body(
        "chat.completion",
        choices=choices,
        usage=usage_of(generations),
        comp_export=extension_of(asked, generations[0], follows[0].options),
    )


async def chunks(asked: Asked, follows: list[Follow], include_usage: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed response, the last ``[DONE]``.

    An error after the first event is sent as an event, which clients raise.
    """
    lines = _Lines(asked, include_usage)
    finished: list[Generation] = []
    async with merged(follows) as events:
        async for number, event in events:
            if isinstance(event, BaseException):
                yield f"data: {bytes(response_of(event).body).decode()}\n\n"
                return
            for line in lines.of(number, event):
                yield line
            if isinstance(event, Finished):
                finished.append(event.generation)
    if include_usage:
        yield lines.usage(finished, follows[0].options)
    yield DONE


class _Lines:
    """The chunks of a response as lines of server-sent events."""

    def __init__(self, asked: Asked, include_usage: bool) -> None:
        self._asked, self._head = asked, Head.of(asked.model)
        self._no_usage = {"usage": None} if include_usage else {}

    def of(self, number: int, event: Event) -> Iterator[str]:
        """Yield the chunks of an event of a choice."""
        if isinstance(event, Prefilled):
            yield self._choice(number, {"role": "assistant", "content": ""})
        elif isinstance(event, TokenText):
            if event.text or event.logprobs:
                logprobs = _logprobs(self._asked, [event])
                yield self._choice(number, {"content": event.text}, logprobs=logprobs)
        else:
            if event.text:
                yield self._choice(number, {"content": event.text})
            yield self._choice(number, {}, REASONS[event.generation.finish_reason])

    def usage(self, finished: list[Generation], options: GenerationOptions) -> str:
        """The chunk without choices, with the numbers of tokens."""
        extension = extension_of(self._asked, finished[0], options)
        return self._line(choices=[], usage=usage_of(finished), comp_export=extension)

    def _choice(
        self, number: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._line(choices=[choice], **self._no_usage)

    def _line(self, **more: Any) -> str:
        return f"data: {json.dumps(self._head.body('chat.completion.chunk', **more))}\n\n"


async def asked_and_started(server: Server, request: ChatRequest) -> tuple[Asked, list[Follow]]:
    """Check a request and queue it; errors are known before a response begins."""
    asked = asked_of(server, request)
    return asked, await start(server, asked)


def _logprobs(asked: Asked, tokens: list[TokenText]) -> dict[str, Any] | None:
    """Log-probabilities of tokens, with the text and the bytes of each."""
    if asked.options[0].top_logprobs is None:
        return None

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = asked.model.token_text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            entry(token.token_id, token.logprobs.logprob)
            | {"top_logprobs": [entry(*each) for each in token.logprobs.top]}
            for token in tokens
            if token.logprobs is not None
        ],
        "refusal": None,
    }
