"""The models that a server offers: artifacts by id, each with its engine and its worker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from comp.data.images import ImageSource
from comp.errors import CompExportError
from comp.runs import open_run
from comp.utils.device import Device
from export.artifact.manifest import MANIFEST_NAME, Manifest
from serve.artifacts import BOTH, ArtifactVariant, artifact_of, is_verified
from serve.backends.base import BackendName, ProviderChoice
from serve.backends.seen_images import SeenImages
from serve.backends.seen_prefixes import SeenPrefixes
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Event
from serve.loading import TaskEngine, load_engine
from serve.scheduling.one_by_one import OneByOne
from serve.scheduling.requests import Work
from serve.scheduling.scheduler import PROMPTS_TOGETHER, Scheduler
from serve.scheduling.warm_up import warm_up
from serve.scheduling.worker import Worker
from serve.server.conversation import Conversation
from serve.server.errors import ApiError

GENERATES, EMBEDS, JUDGES = "chat/completions", "embeddings", "classify"
ENDPOINTS = {
    "question": GENERATES,
    "caption": GENERATES,
    "retrieval": EMBEDS,
    "statement": JUDGES,
}  # by task


@dataclass(frozen=True)
class Limits:
    """Limits of every model.

    Attributes:
        rows: most answers of a model at the same time.
        queue: most requests of a model that wait.
        max_model_len: most tokens of a prompt with its answer; None: the model's positions.
        cache_bytes: memory for the caches of a model's answers; it bounds the rows.
        image_bytes: memory for the features of images that may come again, of each model.
        prefix_bytes: memory for the caches of prompts that others may begin with, of each model.
    """

    rows: int = 16
    queue: int = 128
    max_model_len: int | None = None
    cache_bytes: int = 2 << 30
    image_bytes: int = 256 << 20
    prefix_bytes: int = 512 << 20


@dataclass(frozen=True)
class ServedModel:
    """An artifact that is served.

    Attributes:
        id: the model's name in requests.
        path: directory of the artifact.
        engine: runs it.
        worker: the queue of its requests.
        verified: whether ``comp-export verify`` passed for these files.
        created: seconds since 1970.
        images: the features of images that are kept.
        prefixes: the caches of prompts that are kept.
    """

    id: str
    path: Path
    engine: TaskEngine
    worker: Worker
    verified: bool
    created: int
    images: SeenImages | None = None
    prefixes: SeenPrefixes | None = None

    @property
    def serves(self) -> str:
        """The endpoint of the model's task."""
        return ENDPOINTS[self.engine.manifest.task]

    def check_serves(self, endpoint: str) -> None:
        """Refuse a request for another task.

        Raises:
            ApiError: names the endpoint of the model.
        """
        if self.serves != endpoint:
            raise ApiError(
                f"{self.id} does not serve /v1/{endpoint}: it is a {self.engine.manifest.task} model, for "
                f"/v1/{self.serves}",
                param="model",
            )

    def prepare(
        self,
        conversation: Conversation,
        images: Sequence[ImageSource],
        options: GenerationOptions,
    ) -> Work:
        """Read images and encode the prompt; takes time, and runs no graph.

        Raises:
            CompExportError: unreadable images, or a prompt that does not fit the model.
        """
        engine = self.engine
        if isinstance(engine, Engine):
            messages = conversation.messages
            if isinstance(self.worker, Scheduler):
                return engine.prepare(images, messages, options)
            prepared = engine.prepare(images, messages, options)
            return lambda chosen: engine.stream_prepared(prepared, chosen)
        assert isinstance(engine, BlipGenerator)
        if len(conversation.messages) > 1:
            raise ApiError(
                f"{self.id} takes one question about one image, not {len(conversation.messages)} turns",
                param="messages",
            )
        stream = engine.stream(images, conversation.question, options)
        return lambda _: _whole(stream)

    def token_text(self, token_id: int) -> str:
        """The text of one token."""
        engine = self.engine
        if isinstance(engine, Engine):
            return engine.tokenizer.decode([token_id], skip_special_tokens=False)
        return engine.texts.tokenizer.decode([token_id], skip_special_tokens=False)

    @property
    def keeps_by_factor(self) -> bool:
        """Whether the artifact takes a factor on its keep ratios."""
        if not isinstance(self.engine, Engine):
            return False
        return self.engine.takes_keep_factor


def _whole(stream: Iterator[Event]) -> Iterator[Event]:
    yield from stream


class Models:
    """All models of a server."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Raise ``CompExportError`` if two have the same id."""
        self._models: dict[str, ServedModel] = {}
        for model in models:
            other = self._models.get(model.id)
            if other is not None:
                raise CompExportError(
                    f"{model.path} and {other.path} are both called {model.id}: name one with ID=PATH"
                )
            self._models[model.id] = model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def called(self, name: str) -> ServedModel:
        """Return a model.

        Raises:
            ApiError: there is none of this name (404); names those that there are.
        """
        model = self._models.get(name)
        if model is None:
            raise ApiError(
                f"no model {name!r}: this server has {', '.join(self._models)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return model

    def drain(self, seconds: float) -> bool:
        """Finish the requests of all models; return whether they have ended."""
        deadline = time() + seconds
        ended = [model.worker.drain(max(0.0, deadline - time())) for model in self]
        return all(ended)

    def stop(self) -> None:
        """End the requests of all models."""
        for model in self:
            model.worker.stop()


def places_of(
    arguments: Sequence[str], variant: ArtifactVariant
) -> Iterator[tuple[str, Path, ArtifactVariant | None]]:
    """Yield id and directory of the artifacts that the arguments name: runs, artifacts, or ``ID=PATH``.

    A run has two: its dense model under the model's name (with ``-dense`` at the run's, if that is the same),
    and the compressed one under the run's. The
    variant is that of a run's artifacts, None for an artifact by itself.

    Raises:
        CompExportError: no such run or artifact.
    """
    for argument in arguments:
        name, equals, place = argument.partition("=")
        path = Path(place if equals else argument)
        if (path / MANIFEST_NAME).is_file():
            yield name if equals else path.resolve().name, path, None
            continue
        run = open_run(path)
        compressed = name if equals else run.path.name
        model = Path(run.read_record()["model"]).name
        dense = f"{compressed}-dense" if equals or model == compressed else model
        for which, called in zip(BOTH, (dense, compressed), strict=True):
            yield called, artifact_of(run, which, variant), variant


def load_models(
    arguments: Sequence[str],
    variant: ArtifactVariant,
    limits: Limits,
    device: Device = "auto",
    threads: int | None = None,
) -> Models:
    """Load all artifacts that the arguments name; see ``places_of``.

    Raises:
        CompExportError: an artifact is missing or damaged, or does not run here.
    """
    models = []
    for name, path, of_run in places_of(arguments, variant):
        provider: ProviderChoice = variant.provider if of_run else "auto"
        backend: BackendName | None = variant.backend if of_run else None
        models.append(load_model(name, path, limits, device, threads, provider, backend))
    return Models(models)


def load_model(
    name: str,
    path: Path,
    limits: Limits,
    device: Device = "auto",
    threads: int | None = None,
    provider: ProviderChoice = "auto",
    backend: BackendName | None = None,
) -> ServedModel:
    """Load an artifact, start its worker, and run it once.

    Raises:
        CompExportError: it is missing or damaged, or does not run here.
    """
    engine = load_engine(path, device, threads, provider=provider, backend=backend)
    images, prefixes = None, None
    if isinstance(engine, Engine):
        images = engine.keep_images(limits.image_bytes)
        if limits.prefix_bytes:
            prefixes = engine.keep_prefixes(limits.prefix_bytes)
    worker = worker_of(engine, limits, begins_alike=prefixes is not None)
    if isinstance(engine, Engine):
        warm_up(engine, worker)
    return ServedModel(
        name, path, engine, worker, is_verified(path), created_of(path), images, prefixes
    )


def created_of(path: Path) -> int:
    """When an artifact was made: seconds since 1970."""
    return int((path / MANIFEST_NAME).stat().st_mtime)


def worker_of(engine: TaskEngine, limits: Limits, begins_alike: bool) -> Worker:
    """Return the worker of an engine: rows where its backend has them, else one request after another.

    Args:
        engine: the engine.
        limits: limits of every model.
        begins_alike: whether the engine keeps the caches of prompts; it then reads one prompt at a time.

    Raises:
        CompExportError: the memory for caches does not hold one answer.
    """
    if not isinstance(engine, Engine) or not engine.has_rows:
        return OneByOne(limits.queue)
    manifest = engine.manifest.decoder
    places = min(
        limits.max_model_len or manifest.max_position_embeddings, manifest.max_position_embeddings
    )
    row_bytes = places * engine.cache_bytes_per_token
    rows = min(limits.rows, limits.cache_bytes // row_bytes)
    if rows < 1:
        raise CompExportError(
            f"an answer of {places} tokens takes {row_bytes / 2**20:.0f} MiB of caches, and --cache-memory "
            f"is {limits.cache_bytes / 2**20:.0f} MiB: give more, or a smaller --max-model-len"
        )
    together = 1 if begins_alike else PROMPTS_TOGETHER
    return Scheduler(engine, int(rows), places, limits.queue, together)


def shown_manifest(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON data; a checkpoint's directory is reduced to its name."""
    checkpoint = Path(manifest.model)
    name = checkpoint.name if checkpoint.is_absolute() else manifest.model
    return manifest.model_copy(update={"model": name}).model_dump(mode="json")


def listed(
    name: str, created: int, manifest: Manifest, verified: bool, **more: object
) -> dict[str, object]:
    """A model as ``/v1/models`` lists it; ``more`` joins the fields of ``comp_export``."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "comp-export",
        "comp_export": {
            "task": manifest.task,
            "family": manifest.family,
            "precision": manifest.precision,
            "verified": verified,
            "endpoint": f"/v1/{ENDPOINTS[manifest.task]}",
            **more,
        },
    }
