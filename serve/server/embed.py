"""Retrieval and judging: ``/v1/embeddings``, ``/v1/rerank`` and ``/v1/classify``."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from serve.engines.blip_judge import Judge
from serve.engines.retriever import Retriever
from serve.server.conversation import Picture
from serve.server.errors import ApiError
from serve.server.fields import check_fields
from serve.server.models import EMBEDS, JUDGES, ServedModel
from serve.server.schemas import (
    ClassifyRequest,
    EmbeddingsRequest,
    PictureInput,
    RerankRequest,
    StatementInput,
)
from serve.server.settings import Server

MOST_INPUTS = 256


def _listed(value: Any) -> list[Any]:
    """The inputs of a request, which may be one.

    Raises:
        ApiError: there are too many.
    """
    inputs = value if isinstance(value, list) else [value]
    if len(inputs) > MOST_INPUTS:
        raise ApiError(f"input: {len(inputs)} inputs, {MOST_INPUTS} at most", param="input")
    return inputs


async def _read(server: Server, value: str | PictureInput, param: str) -> str | bytes:
    """A text, or the bytes of an image.

    Raises:
        ApiError: neither or both are given, or the image cannot be read.
    """
    if isinstance(value, str):
        return value
    if (value.text is None) == (value.image is None):
        raise ApiError(f"{param}: give text or image", param=param)
    if value.text is not None:
        return value.text
    assert value.image is not None
    return await server.picture(Picture(value.image, f"{param}.image"))


def _retriever(model: ServedModel) -> Retriever:
    model.check_serves(EMBEDS)
    assert isinstance(model.engine, Retriever)
    return model.engine


def _embedded(engine: Retriever, inputs: Sequence[str | bytes]) -> NDArray[np.float32]:
    """Embeddings ``[N, P]`` of texts and images, in their order."""
    result: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(inputs)
    texts = [place for place, each in enumerate(inputs) if isinstance(each, str)]
    images = [place for place, each in enumerate(inputs) if isinstance(each, bytes)]
    if texts:
        embeds = engine.embed_texts([str(inputs[place]) for place in texts]).embeds
        for row, place in enumerate(texts):
            result[place] = embeds[row]
    if images:
        embeds = engine.embed_images([_bytes(inputs[place]) for place in images]).embeds
        for row, place in enumerate(images):
            result[place] = embeds[row]
    return np.stack(result)


def _bytes(value: str | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


async def embeddings(server: Server, request: EmbeddingsRequest) -> dict[str, Any]:
    """Embed texts and images to unit length.

    Raises:
        CompExportError: the request is refused.
    """
    model = server.models.called(request.model)
    engine = _retriever(model)
    check_fields(request)
    inputs = [
        await _read(server, each, f"input.{number}")
        for number, each in enumerate(_listed(request.input))
    ]
    async with server.preparing:
        embeds = await asyncio.to_thread(_embedded, engine, inputs)

    def shown(row: NDArray[np.float32]) -> list[float] | str:
        if request.encoding_format == "base64":
            return base64.b64encode(row.astype("<f4").tobytes()).decode()
        return [float(value) for value in row]

    tokens = sum(int(engine.encode(each, "input").size) for each in inputs if isinstance(each, str))
    return {
        "object": "list",
        "model": model.id,
        "data": [
            {"object": "embedding", "index": number, "embedding": shown(row)}
            for number, row in enumerate(embeds)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def rerank(server: Server, request: RerankRequest) -> dict[str, Any]:
    """Rank texts for an image, or images for a text, by the model's own score.

    Raises:
        CompExportError: the request is refused, or query and documents are of one kind.
    """
    model = server.models.called(request.model)
    engine = _retriever(model)
    query = await _read(server, request.query, "query")
    documents = [
        await _read(server, each, f"documents.{number}")
        for number, each in enumerate(_listed(request.documents))
    ]
    if any(isinstance(each, str) == isinstance(query, str) for each in documents):
        raise ApiError(
            "documents: give texts for an image, or images for a text: the model compares the two",
            param="documents",
        )

    def scores() -> NDArray[np.float32]:
        if isinstance(query, bytes):
            return engine.rank([query], [str(each) for each in documents]).of_texts[0]
        return engine.rank([_bytes(each) for each in documents], [query]).of_images[0]

    async with server.preparing:
        found = await asyncio.to_thread(scores)
    order = np.argsort(-found, kind="stable")[: request.top_n]
    return {
        "id": f"rerank-{uuid4().hex}",
        "model": model.id,
        "results": [
            {"index": int(place), "relevance_score": float(found[place])}
            | ({"document": _shown(request.documents[place])} if request.return_documents else {})
            for place in order
        ],
    }


def _shown(document: str | PictureInput) -> dict[str, Any]:
    return (
        {"text": document} if isinstance(document, str) else document.model_dump(exclude_none=True)
    )


async def classify(server: Server, request: ClassifyRequest) -> dict[str, Any]:
    """Judge statements about two images each.

    Raises:
        CompExportError: the request is refused.
    """
    model = server.models.called(request.model)
    model.check_serves(JUDGES)
    engine = model.engine
    assert isinstance(engine, Judge)
    inputs: list[StatementInput] = _listed(request.input)
    requests = []
    for number, each in enumerate(inputs):
        images = [
            await server.picture(Picture(url, f"input.{number}.images.{place}"))
            for place, url in enumerate(each.images)
        ]
        requests.append((images, each.text))
    async with server.preparing:
        judged = await asyncio.to_thread(engine.judge_batch, requests)
    return {
        "id": f"classify-{uuid4().hex}",
        "object": "list",
        "model": model.id,
        "data": [
            {
                "index": number,
                "label": "true" if each.verdict else "false",
                "probs": [1 - each.probability, each.probability],
                "num_classes": 2,
            }
            for number, each in enumerate(judged)
        ],
    }
