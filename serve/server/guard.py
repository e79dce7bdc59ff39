"""Refuse requests without a key and bodies that are too large, before anything reads them."""

import hmac

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.server.errors import body_of
from serve.server.settings import Settings

OPEN = ("/health", "/health/ready")  # load balancers have no key


class Guard:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN and not self._may(headers.get(b"authorization", b"")):
            body = body_of("this server needs an API key: Authorization: Bearer KEY", 401)
            await JSONResponse(body, 401)(scope, receive, send)
            return
        most, read = self.settings.max_body, 0
        words = f"the body is larger than {most} bytes: send less, or scale pictures down"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await JSONResponse(body_of(words, 413), 413)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > most:
                    raise HTTPException(413, words)  # FastAPI makes 400 of others
            return message

        await self.app(scope, counted, send)

    def _may(self, given: bytes) -> bool:
        keys = self.settings.keys
        if not keys:
            return True
        kind, _, key = given.partition(b" ")
        # All keys are compared, so that the time says nothing about them.
        same = [hmac.compare_digest(key.strip(), each.encode()) for each in keys]
        return kind.lower() == b"bearer" and any(same)
