"""The entrance's application: keys, the list of models, and requests that go on to replicas."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from comp.errors import CompExportError
from serve.artifacts import is_verified
from serve.fleet.config import FleetConfig, FleetModel
from serve.fleet.relay import Forwarded, Head
from serve.fleet.retrying import LostError, Send, Stream, answered
from serve.loading import manifest_in
from serve.server.app import make_app
from serve.server.errors import ApiError, add_handlers, body_of, response_of
from serve.server.guard import Guard
from serve.server.model_routes import model_routes
from serve.server.models import Models, created_of, listed, shown_manifest
from serve.server.settings import Server, Settings

KEPT_HERE = (b"authorization", b"host", b"connection")  # headers that replicas do not get
GIVEN_BY_PROXY = b"x-request-id"
METRICS = (
    "the metrics of a fleet are those of all its processes: Ray exports them on each node "
    "(ray start --metrics-export-port)"
)


def make_front(config: FleetConfig, send: Send, running: Callable[[], Awaitable[int]]) -> ASGIApp:
    """Return the application.

    Args:
        config: of the fleet.
        send: sends a request for a model to one replica.
        running: returns the number of replicas that are ready.

    Raises:
        CompExportError: an artifact or the file of keys is missing.
    """
    settings = config.settings(at_entrance=True)
    models = {model.id: _listed(model) for model in config.models}
    nothing = Server(Models([]), Settings())

    async def ready(_: Request) -> Response:
        replicas = await running()
        state = {"status": "ready" if replicas else "waiting", "replicas": replicas}
        return JSONResponse(state, 200 if replicas else 503)

    async def metrics(_: Request) -> Response:
        return JSONResponse(body_of(METRICS, 404), 404)

    async def every(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def one(request: Request) -> Response:
        return JSONResponse(models[_known(request.path_params["name"], models)])

    async def manifest(request: Request) -> Response:
        known = _known(request.path_params["name"], models)
        path = next(Path(model.path) for model in config.models if model.id == known)
        return JSONResponse(shown_manifest(manifest_in(path)))

    async def forward(request: Request) -> Response:
        body = await request.body()
        name = _known(_model_in(body), models)
        headers = tuple(each for each in request.headers.raw if each[0] not in KEPT_HERE)
        forwarded = Forwarded(request.method, request.url.path, headers, body)
        return await _relayed(answered(send, name, forwarded, config.request_timeout), forwarded)

    paths = [route.path for route in model_routes(nothing).routes if isinstance(route, Route)]
    routes: list[BaseRoute] = [Route(path, forward, methods=["POST"]) for path in paths]
    routes += [
        Route("/health/ready", ready),
        Route("/metrics", metrics),
        Route("/v1/models", every),
        Route("/v1/models/{name:path}/manifest", manifest),
        Route("/v1/models/{name:path}", one),
        Mount("/", make_app(nothing)),  # health, version, the page of the API, unknown paths
    ]
    app = FastAPI(routes=routes, openapi_url=None)
    add_handlers(app)
    return Guard(app, settings)


async def _relayed(stream: Stream, request: Forwarded) -> Response:
    """Begin to answer; errors after the beginning are sent as an event, which clients raise."""
    try:
        head = await anext(stream)
    except BaseException:
        await stream.aclose()
        raise
    assert isinstance(head, Head)

    async def body() -> Any:
        try:
            async for part in stream:
                yield part
        except CompExportError as error:
            yield _event(error, request.path)
        finally:
            await stream.aclose()

    response = StreamingResponse(body(), head.status)
    response.raw_headers = [each for each in head.headers if each[0].lower() != GIVEN_BY_PROXY]
    return response


def _event(error: CompExportError, path: str) -> str:
    """An error as a server-sent event of the endpoint."""
    if isinstance(error, LostError):
        error = ApiError(f"{error}: send the request again", 500, code="replica_lost")
    body = json.loads(bytes(response_of(error).body))
    if not path.endswith("/responses"):
        return f"data: {json.dumps(body)}\n\n"
    said = {key: body["error"][key] for key in ("message", "code", "param")}
    # Its number says nothing about those before it: the entrance does not read the events.
    return f"event: error\ndata: {json.dumps({'type': 'error', 'sequence_number': 0, **said})}\n\n"


def _model_in(body: bytes) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {str(error)[:100]}") from error
    name = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(name, str):
        raise ApiError("model: give the id of a model", param="model")
    return name


def _known(name: str, models: dict[str, dict[str, object]]) -> str:
    if name not in models:
        raise ApiError(
            f"no model {name[:100]!r}: this server has {', '.join(models)}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return name


def _listed(model: FleetModel) -> dict[str, object]:
    path = Path(model.path)
    return listed(model.id, created_of(path), manifest_in(path), is_verified(path))
