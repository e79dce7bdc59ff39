"""The application: routes, limits and keys."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.server.chat import asked_and_started, chunks, completion
from serve.server.errors import add_handlers, body_of
from serve.server.models import described
from serve.server.schemas import ChatRequest
from serve.server.settings import Server

OPEN = ("/health", "/health/ready")  # load balancers have no key
DRAIN_SECONDS = 30.0


def make_app(server: Server) -> FastAPI:
    """Return the application of a server."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.models.drain, DRAIN_SECONDS)
        server.models.stop()

    app = FastAPI(
        title="comp-export",
        version=version("comp-export"),
        docs_url=None,  # its page would load scripts from other hosts
        redoc_url=None,
        lifespan=life,
    )
    add_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> dict[str, Any]:
        """All models are loaded; with their load."""
        return {
            "status": "ready",
            "models": {each.id: vars(each.worker.load) for each in server.models},
        }

    @app.get("/version")
    async def own_version() -> dict[str, str]:
        """The version of this software."""
        return {"version": version("comp-export")}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that this server has."""
        return {"object": "list", "data": [_model(each) for each in server.models]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(server.models.called(name))

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest, connection: Request) -> Any:
        """Answer a conversation about images."""
        asked, follows = await asked_and_started(server, request)
        headers = _headers(asked.model)
        if request.stream:
            usage = request.stream_options is not None and request.stream_options.include_usage
            return StreamingResponse(
                chunks(asked, follows, usage), media_type="text/event-stream", headers=headers
            )
        answering = asyncio.create_task(completion(asked, follows))
        watching = asyncio.create_task(_left(connection))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                return JSONResponse(body_of("the client left", 499), 499)
            return JSONResponse(answering.result(), headers=headers)
        finally:
            watching.cancel()

    app.add_middleware(Guard, server=server)
    return app


async def _left(connection: Request) -> None:
    """Wait until the client closes the connection."""
    while not await connection.is_disconnected():
        await asyncio.sleep(0.1)


def _model(model: Any) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "comp-export",
        "comp_export": described(model),
    }


def _headers(model: Any) -> dict[str, str]:
    if model.verified:
        return {}
    return {"X-Comp-Export-Warning": "this artifact was not verified: run `comp-export verify`"}


class Guard:
    """Refuse requests without a key, and bodies that are too large, before anything reads them."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.settings = app, server.settings

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
        too_large = JSONResponse(body_of(f"the body is larger than {most} bytes", 413), 413)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await too_large(scope, receive, send)
            return
        began = False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > most:
                    raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _TooLargeError:
            if began:
                raise
            await too_large(scope, receive, send)

    def _may(self, given: bytes) -> bool:
        keys = self.settings.keys
        if not keys:
            return True
        kind, _, key = given.partition(b" ")
        # All keys are compared, so that the time says nothing about them.
        same = [hmac.compare_digest(key.strip(), each.encode()) for each in keys]
        return kind.lower() == b"bearer" and any(same)


class _TooLargeError(Exception):
    """A body beyond the limit, seen while it is read."""
