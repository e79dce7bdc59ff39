"""The entrance: the deployment that Ray's proxies send requests to."""

import asyncio
from contextlib import suppress
from typing import Any

import ray.serve as ray_serve
from ray.exceptions import NodeDiedError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError
from starlette.types import ASGIApp

from serve.fleet.config import FleetConfig
from serve.fleet.front import make_front
from serve.fleet.relay import Forwarded
from serve.fleet.retrying import LostError, Stream
from serve.scheduling.requests import QueueFullError

MODELS = "Models"  # the deployment of the replicas
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ReplicaUnavailableError)


class Entrance:
    """Passes requests to replicas; Ray's own proxies do not send one again if its replica was lost.

    Args:
        config: of the fleet.
        models: handle of the replicas.
    """

    def __init__(self, config: FleetConfig, models: Any) -> None:
        self._config, self._models = config, models
        self._app_name: str = ray_serve.get_replica_context().app_name

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray calls this on the node of the entrance."""
        return make_front(self._config, self.send, self.running)

    async def send(self, model: str, request: Forwarded) -> Stream:
        """Send a request to one replica, by preference one that holds the model; yield its answer.

        Raises:
            LostError: the replica ended before its answer did.
            QueueFullError: too many requests wait for replicas.
        """
        handle = self._models.options(stream=True, multiplexed_model_id=model)
        response = handle.answer.remote(model, request)
        try:
            async for part in response:
                yield part
        except LOST as error:
            raise LostError("the replica that answered was lost") from error
        except BackPressureError as error:
            raise QueueFullError("too many requests wait already: try again later") from error
        finally:
            with suppress(RayError, RayServeException):  # raised again, if it has ended by an error
                response.cancel()  # without effect if it has ended

    async def running(self) -> int:
        """Return the number of replicas that are ready."""
        status = await asyncio.to_thread(ray_serve.status)
        states = status.applications[self._app_name].deployments[MODELS].replica_states
        return int(states.get("RUNNING", 0))
