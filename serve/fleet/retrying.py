"""Send a request again to another replica if its replica was lost, as long as the client has seen nothing."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from time import monotonic

from comp.errors import CompExportError
from serve.fleet.relay import Forwarded, Head
from serve.server.errors import ApiError

TRIES = 3  # a request that ends three replicas is not sent to a fourth
WAIT_SECONDS = 0.2  # before the second try; doubled before each other
GRACE_SECONDS = 10.0  # replicas end requests at their deadline themselves

Stream = AsyncGenerator[Head | bytes, None]
Send = Callable[[str, Forwarded], Stream]


class LostError(CompExportError):
    """A replica ended before its answer did."""


async def answered(send: Send, model: str, request: Forwarded, seconds: float) -> Stream:
    """Yield the head of an answer, then its body.

    An answer that does not stream is yielded when it is whole, so that until its end it can be asked for
    again. Events are yielded as they come.

    Args:
        send: sends a request for a model to one replica.
        model: id.
        request: the request.
        seconds: time that it may take.

    Raises:
        LostError: the replica was lost after the answer had begun to stream.
        ApiError: every try lost its replica, or the time is over before the answer begins.
    """
    deadline = monotonic() + seconds + GRACE_SECONDS
    for attempt in range(TRIES):
        begun, parts = False, send(model, request)
        try:
            head = await _next(parts, deadline)
            if not isinstance(head, Head):
                raise LostError("an answer without a head")
            if not head.is_stream:
                body = b"".join([part async for part in _rest(parts, deadline)])
                yield head
                yield body
                return
            async for part in _rest(parts, deadline):
                if not begun:
                    begun = True  # what raises from here on is for the client
                    yield head
                yield part
            if not begun:
                yield head
            return
        except LostError:
            if begun:
                raise
        finally:
            await parts.aclose()
        await asyncio.sleep(WAIT_SECONDS * 2**attempt)
    raise ApiError(f"{TRIES} replicas were lost with this request: try again later", 503)


async def _next(parts: Stream, deadline: float) -> Head | bytes | None:
    """Return the next part, or None at the end."""
    try:
        return await asyncio.wait_for(anext(parts), max(0.0, deadline - monotonic()))
    except StopAsyncIteration:
        return None
    except asyncio.TimeoutError:  # not the built-in one before Python 3.11
        raise ApiError("the request took too long: it waited for a replica", 408) from None


async def _rest(parts: Stream, deadline: float) -> AsyncGenerator[bytes, None]:
    while (part := await _next(parts, deadline)) is not None:
        assert isinstance(part, bytes)
        yield part
