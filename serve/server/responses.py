"""``POST /v1/responses``: the Responses API, converted to the path of chat completions."""

import json
from collections.abc import AsyncIterator, Sequence
from time import time
from typing import Any
from uuid import uuid4

from serve.generation.results import Finished, Generation, Prefilled
from serve.scheduling.adaptive import AUTO
from serve.server.answers import Asked, Follow, collect, extension_of, merged
from serve.server.conversation import conversation_of
from serve.server.errors import body_of
from serve.server.fields import check_fields
from serve.server.models import GENERATES
from serve.server.schemas import ChatMessage, ResponsesRequest
from serve.server.settings import Server, factor_of, options_of


def asked_of(server: Server, request: ResponsesRequest) -> Asked:
    """Check a request, and resolve its model and options.

    Raises:
        ApiError: names the field that cannot be served.
    """
    model = server.models.called(request.model)
    model.check_serves(GENERATES)
    check_fields(request)
    turns: list[ChatMessage] = []
    if request.instructions:
        turns.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        turns.append(ChatMessage(role="user", content=request.input))
    else:
        turns.extend(request.input)
    conversation = conversation_of(turns, server.settings.max_images)
    factor = factor_of(server, model, request, conversation)
    options = options_of(
        server,
        request,
        factor,
        max_new_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
    )
    return Asked(model, conversation, options, request.return_kept_indices, factor == AUTO)


class _Response:
    """One response while it grows."""

    def __init__(self, asked: Asked, follow: Follow) -> None:
        self.asked, self.follow = asked, follow
        self.id, self.item = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created = time()

    def part(self, text: str) -> dict[str, Any]:
        """The text of the answer."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def message(self, content: Sequence[dict[str, Any]], status: str) -> dict[str, Any]:
        """The answer as a message."""
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(content),
        }

    def body(self, generation: Generation | None = None) -> dict[str, Any]:
        """The response; without a generation, that of its beginning."""
        options = self.follow.options
        cut = generation is not None and generation.finish_reason == "length"
        done = "incomplete" if cut else "completed"
        status = "in_progress" if generation is None else done
        output, usage, extension = [], None, None
        if generation is not None:
            output = [self.message([self.part(generation.text)], status)]
            extension = extension_of(self.asked, generation, options)
            written = len(generation.token_ids)
            usage = {
                "input_tokens": generation.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": generation.cached_tokens,
                    "image_tokens": generation.image_tokens,
                },
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": generation.prompt_tokens + written,
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": None,
            "max_output_tokens": options.max_new_tokens,
            "metadata": {},
            "model": self.asked.model.id,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": options.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": options.top_p,
            "usage": usage,
            "comp_export": extension,
        }


async def response(asked: Asked, follow: Follow) -> dict[str, Any]:
    """Wait for the answer, and return the response."""
    return _Response(asked, follow).body((await collect(follow)).generation)


async def events(asked: Asked, follow: Follow) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed response."""
    made, number = _Response(asked, follow), 0

    def line(kind: str, **more: Any) -> str:
        nonlocal number
        event = {"type": kind, "sequence_number": number, **more}
        number += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"

    place = {"item_id": made.item, "output_index": 0, "content_index": 0}
    yield line("response.created", response=made.body())
    yield line("response.in_progress", response=made.body())
    async with merged([follow]) as coming:
        async for _, event in coming:
            if isinstance(event, BaseException):
                error = body_of(str(event), 500)["error"]
                yield line("error", message=error["message"], code=error["type"], param=None)
                return
            if isinstance(event, Prefilled):
                item = made.message([], "in_progress")
                yield line("response.output_item.added", output_index=0, item=item)
                yield line("response.content_part.added", **place, part=made.part(""))
            elif event.text:
                yield line("response.output_text.delta", **place, delta=event.text, logprobs=[])
            if isinstance(event, Finished):
                whole = made.body(event.generation)
                item = whole["output"][0]
                text = event.generation.text
                yield line("response.output_text.done", **place, text=text, logprobs=[])
                yield line("response.content_part.done", **place, part=made.part(text))
                yield line("response.output_item.done", output_index=0, item=item)
                yield line(f"response.{whole['status']}", response=whole)
