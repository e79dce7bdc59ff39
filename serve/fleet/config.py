"""The configuration of a fleet: its models, the limits of a request, and the replicas that answer."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comp.errors import CompExportError
from comp.utils.device import Device
from serve.backends.base import BackendName, ProviderChoice
from serve.scheduling.adaptive import Factor
from serve.server.keys import VARIABLE, read_keys
from serve.server.models import Limits
from serve.server.settings import Settings

Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetModel(_Part):
    """A model of a fleet.

    Attributes:
        path: directory of the artifact, at the same place on every node.
        provider, backend: those of ``serve.loading.load_engine``.
    """

    id: str
    path: str
    provider: ProviderChoice = "auto"
    backend: BackendName | None = None


class Replicas(_Part):
    """The processes that run models.

    Attributes:
        least, most: number of replicas; between them it follows the load.
        target_ongoing: requests of a replica, running and waiting, that the number of replicas aims at.
        models_each: most models that a replica holds; the one that was unused longest makes room.
        cpus: cores of a replica.
        gpus: GPUs of a replica; a fraction lets several share one.
        drain_seconds: time for the requests of a replica that is to end.
    """

    least: Count = 1
    most: Count = 1
    target_ongoing: Annotated[float, Field(gt=0)] = 16
    models_each: Count = 4
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    drain_seconds: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most is {self.most}: swap them")
        return self


class FleetConfig(_Part):
    """The arguments of the application (``args`` in the YAML file of ``serve deploy``).

    Attributes:
        entrances: processes that take requests and pass them to replicas.
        api_keys: file with keys, on every node; without it the nodes' variable ``COMP_EXPORT_API_KEYS``.
        keys_required: whether an entrance without keys refuses to start.
        max_num_seqs, max_queue, max_model_len: limits of a model on a replica.
        cache_memory, image_memory, prefix_memory: its memories in GiB.
        max_new_tokens, max_images, request_timeout, keep_factor, image_hosts, log_prompts, seed: of requests
            (``serve.server.settings.Settings``).
        log_format: of the replicas' logs, which Ray keeps.
        device, threads: of a replica.
    """

    models: Annotated[tuple[FleetModel, ...], Field(min_length=1)]
    replicas: Replicas = Replicas()
    entrances: Count = 1
    api_keys: str | None = None
    keys_required: bool = False
    max_num_seqs: Count = 16
    max_queue: Count = 128
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    cache_memory: Annotated[float, Field(gt=0)] = 2.0
    image_memory: Annotated[float, Field(ge=0)] = 0.25
    prefix_memory: Annotated[float, Field(ge=0)] = 0.5
    max_new_tokens: Count = 512
    max_images: Annotated[int, Field(ge=0)] = 16
    request_timeout: Annotated[float, Field(gt=0)] = 300.0
    keep_factor: Factor = 1.0
    image_hosts: tuple[str, ...] = ()
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"
    threads: Count | None = None

    @model_validator(mode="after")
    def _named_once(self) -> "FleetConfig":
        ids = [model.id for model in self.models]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two models are called {twice!r}: give each a name of its own")
        return self

    @property
    def limits(self) -> Limits:
        """Limits of each model on a replica."""
        return Limits(
            rows=self.max_num_seqs,
            queue=self.max_queue,
            max_model_len=self.max_model_len,
            cache_bytes=int(self.cache_memory * 2**30),
            image_bytes=int(self.image_memory * 2**30),
            prefix_bytes=int(self.prefix_memory * 2**30),
        )

    def settings(self, at_entrance: bool) -> Settings:
        """Return the limits of requests; keys are checked at the entrance alone.

        Raises:
            CompExportError: the file of keys is missing, or others can read it; there are none, and they are
                required.
        """
        path = None if self.api_keys is None else Path(self.api_keys)
        keys = read_keys(path) if at_entrance else ()
        if at_entrance and self.keys_required and not keys:
            raise CompExportError(
                f"this node has no API keys: set {VARIABLE} where Ray starts, or name a file with api_keys"
            )
        return Settings(
            max_images=self.max_images,
            max_new_tokens=self.max_new_tokens,
            request_seconds=self.request_timeout,
            keys=keys,
            image_hosts=self.image_hosts,
            seed=self.seed,
            keep_factor=self.keep_factor,
            log_prompts=self.log_prompts,
        )
