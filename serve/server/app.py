"""The application: its routes, limits and end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serve.server.errors import add_handlers
from serve.server.guard import Guard
from serve.server.model_routes import model_routes
from serve.server.request_ids import RequestIds
from serve.server.settings import Server
from serve.server.status_routes import status_routes

DRAIN_SECONDS = 30.0


def make_app(server: Server) -> FastAPI:
    """Return the application of a server; when it ends, it finishes the requests that it has."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.models.drain, DRAIN_SECONDS)
        server.models.stop()

    # FastAPI's own page of the API loads scripts from other hosts; this one has them with it.
    app = FastAPIOffline(
        title="comp-export", version=version("comp-export"), redoc_url=None, lifespan=life
    )
    add_handlers(app)
    app.include_router(status_routes(server))
    app.include_router(model_routes(server))
    app.add_middleware(Guard, settings=server.settings)
    app.add_middleware(RequestIds)  # the last one is outside
    return app
