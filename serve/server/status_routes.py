"""Routes that tell of the server: its health, version, metrics and models."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve.server.models import ServedModel, listed, shown_manifest
from serve.server.settings import Server


def status_routes(server: Server) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @routes.get("/health/ready")
    async def ready() -> dict[str, Any]:
        """All models are loaded; with their load."""
        return {
            "status": "ready",
            "models": {each.id: vars(each.worker.load) for each in server.models},
        }

    @routes.get("/version")
    async def own_version() -> dict[str, str]:
        """The version of this software."""
        return {"version": version("comp-export")}

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that this server has."""
        return {"object": "list", "data": [_model(each) for each in server.models]}

    @routes.get("/v1/models/{name:path}/manifest")
    async def manifest(name: str) -> dict[str, Any]:
        """The manifest of a model's artifact: sizes, drop places, image processor, files."""
        return shown_manifest(server.models.called(name).engine.manifest)

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(server.models.called(name))

    return routes


def _model(model: ServedModel) -> dict[str, Any]:
    engine = model.engine
    return listed(model.id, model.created, engine.manifest, model.verified, backend=engine.backend)
