"""A replica: a process with some of the fleet's models, each with an application of its own."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import ray.serve as ray_serve
from starlette.types import ASGIApp

from comp.errors import CompExportError
from serve.fleet.config import FleetConfig
from serve.fleet.relay import Forwarded, Head, answer_of
from serve.server.app import make_app
from serve.server.errors import ApiError, response_of
from serve.server.logs import configure_logs
from serve.server.models import Models, ServedModel, load_model
from serve.server.settings import Server

HEADER = b"x-comp-export-replica"
LOG = logging.getLogger("comp_export.fleet")


class Loaded:
    """A model that a replica holds; it ends after the requests that use it."""

    def __init__(self, model: ServedModel, app: ASGIApp, seconds: float) -> None:
        self.model, self.app = model, app
        self._seconds, self._users = seconds, 0
        self._changed = threading.Condition()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep the model for the time of a request."""
        with self._changed:
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Wait for the requests that use the model, as long as one may take; then free it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users, self._seconds)
        self.model.worker.stop()

    def __del__(self) -> None:
        """Make room: Ray calls this in a thread when another model is to be loaded."""
        self.end()


class Replica:
    """Answers requests to the models of a fleet, and holds a bounded number of them.

    The first models are loaded at the start, so that a damaged artifact stops an update before it replaces
    a replica that works.

    Args:
        config: of the fleet.
    """

    async def __init__(self, config: FleetConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logs(config.log_format)
        self._config = config
        self._places = {model.id: model for model in config.models}
        self._held: WeakValueDictionary[str, Loaded] = WeakValueDictionary()

        async def load(name: str) -> Loaded:
            return await asyncio.to_thread(self._load, name)

        bounded = ray_serve.multiplexed(max_num_models_per_replica=config.replicas.models_each)
        self._model = bounded(load)
        self._settings = config.settings(at_entrance=False)
        for name in list(self._places)[: config.replicas.models_each]:
            await self._model(name)

    async def answer(self, name: str, request: Forwarded) -> AsyncGenerator[Head | bytes, None]:
        """Yield the head of the answer, then its body as it comes."""
        try:
            loaded: Loaded = await self._model(name)
        except CompExportError as error:
            LOG.error("%s does not load: %s", name, error)
            refused = response_of(ApiError(f"{name} does not load: {error}", 500))
            yield Head(refused.status_code, tuple(refused.raw_headers))
            yield bytes(refused.body)
            return
        with loaded.used():
            stream = answer_of(loaded.app, request)
            try:
                async for part in stream:
                    yield self._signed(part) if isinstance(part, Head) else part
            finally:
                await stream.aclose()

    def _signed(self, head: Head) -> Head:
        """Name the replica in a head, by which its log is found."""
        name = ray_serve.get_replica_context().replica_tag
        return Head(head.status, (*head.headers, (HEADER, name.encode())))

    def check_health(self) -> None:
        """Raise if the thread of a model has ended, so that Ray replaces the replica."""
        for name, loaded in list(self._held.items()):
            if not loaded.model.worker.is_alive:
                raise RuntimeError(f"the worker of {name} has ended")

    def _load(self, name: str) -> Loaded:
        place, config = self._places[name], self._config
        model = load_model(
            name,
            Path(place.path),
            config.limits,
            config.device,
            config.threads,
            place.provider,
            place.backend,
        )
        app = make_app(Server(Models([model]), self._settings))
        loaded = self._held[name] = Loaded(model, app, config.request_timeout)
        return loaded
