"""One HTTP request as data, and an application's answer to it as a stream: what goes between processes."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Forwarded:
    """A request with its whole body."""

    method: str
    path: str
    headers: Headers
    body: bytes

    @property
    def scope(self) -> dict[str, Any]:
        """The request as ASGI describes it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer; its body follows, in pieces of bytes."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Whether the body consists of server-sent events."""
        kinds = [value for name, value in self.headers if name.lower() == b"content-type"]
        return any(kind.startswith(b"text/event-stream") for kind in kinds)


async def answer_of(app: ASGIApp, request: Forwarded) -> AsyncGenerator[Head | bytes, None]:
    """Run an application on a request; yield the head, then the body as it comes.

    Closing the stream ends the application's work, as a client that leaves does.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    whole: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if whole:
            return whole.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    task = asyncio.ensure_future(app(request.scope, receive, sent.put))
    task.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], tuple(message.get("headers", ())))
            elif message.get("body"):
                yield message["body"]
    finally:
        left.set()
        task.cancel()
        # The application's handlers have answered and logged its errors.
        await asyncio.gather(task, return_exceptions=True)
