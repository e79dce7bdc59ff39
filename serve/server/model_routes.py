"""Routes that run models."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from serve.server import embed, responses
from serve.server.answers import start
from serve.server.chat import asked_and_started, chunks, completion
from serve.server.errors import body_of
from serve.server.logs import note_request
from serve.server.models import ServedModel
from serve.server.schemas import (
    ChatRequest,
    ClassifyRequest,
    EmbeddingsRequest,
    RerankRequest,
    ResponsesRequest,
)
from serve.server.settings import Server


def model_routes(server: Server) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(request: ChatRequest, connection: Request) -> Any:
        """Answer a conversation about images."""
        note_request(request, server.settings.log_prompts)
        asked, follows = await asked_and_started(server, request)
        headers = _headers(asked.model)
        if request.stream:
            usage = request.stream_options is not None and request.stream_options.include_usage
            return _streamed(chunks(asked, follows, usage), headers)
        return await _unless_left(connection, completion(asked, follows), headers)

    @routes.post("/v1/responses")
    async def respond(request: ResponsesRequest, connection: Request) -> Any:
        """Answer a conversation about images: the Responses API."""
        note_request(request, server.settings.log_prompts)
        asked = responses.asked_of(server, request)
        (follow,) = await start(server, asked)
        headers = _headers(asked.model)
        if request.stream:
            return _streamed(responses.events(asked, follow), headers)
        return await _unless_left(connection, responses.response(asked, follow), headers)

    @routes.post("/v1/embeddings")
    async def embeddings(request: EmbeddingsRequest) -> dict[str, Any]:
        """Embed texts and images."""
        note_request(request, server.settings.log_prompts)
        return await embed.embeddings(server, request)

    @routes.post("/v1/rerank")
    async def rerank(request: RerankRequest) -> dict[str, Any]:
        """Rank texts for an image, or images for a text."""
        note_request(request, server.settings.log_prompts)
        return await embed.rerank(server, request)

    @routes.post("/v1/classify")
    async def classify(request: ClassifyRequest) -> dict[str, Any]:
        """Judge statements about two images."""
        note_request(request, server.settings.log_prompts)
        return await embed.classify(server, request)

    return routes


def _streamed(lines: AsyncIterator[str], headers: dict[str, str]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _unless_left(
    connection: Request, answer: Coroutine[Any, Any, dict[str, Any]], headers: dict[str, str]
) -> JSONResponse:
    """Wait for an answer; end it if the client leaves."""
    answering = asyncio.create_task(answer)
    watching = asyncio.create_task(_left(connection))
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return JSONResponse(body_of("the client left", 499), 499)
        return JSONResponse(answering.result(), headers=headers)
    finally:
        answering.cancel()
        watching.cancel()


async def _left(connection: Request) -> None:
    """Wait until the client closes the connection."""
    while not await connection.is_disconnected():
        await asyncio.sleep(0.1)


def _headers(model: ServedModel) -> dict[str, str]:
    if model.verified:
        return {}
    return {"X-Comp-Export-Warning": "this artifact was not verified: run `comp-export verify`"}
