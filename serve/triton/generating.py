"""The generating model, without Triton's own module: it gets that as ``utils``.

The engine runs in the model's process, with the scheduler of ``comp-export serve``. The graphs are not called
through Triton (BLS): each step would pass all key/value caches through it, in both directions.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from comp.errors import CompExportError
from serve.artifacts import DEFAULT_VARIANT
from serve.generation.results import Event, Finished, Prefilled, TokenText
from serve.scheduling.requests import CancelledError, QueueFullError, Request
from serve.server.models import GENERATES, ServedModel, load_models
from serve.triton.asking import Asked, read_request
from serve.triton.ports import (
    FINISH_REASON,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    TEXT_OUTPUT,
    TOKEN_IDS,
    TOKENS_KEPT,
)
from serve.triton.settings import GeneratorSettings

LOG = logging.getLogger("comp_export.triton")
ARTIFACT = "artifact"  # its directory in the model's version
POLL_SECONDS = 0.02  # between two questions to Triton whether a request was cancelled
DRAIN_SECONDS = 30.0


class Generating:
    """Answers the requests of one Triton model instance.

    Args:
        utils: Triton's module ``triton_python_backend_utils``.
        arguments: those of ``TritonPythonModel.initialize``.
        version: directory of the model's version, which holds the artifact.

    Raises:
        CompExportError: the artifact is missing or damaged, or does not run here.
    """

    def __init__(self, utils: Any, arguments: dict[str, str], version: Path) -> None:
        self._utils = utils
        self.settings = GeneratorSettings.of_config(arguments["model_config"])
        on_gpu = arguments["model_instance_kind"] == "GPU"
        if on_gpu and arguments["model_instance_device_id"] != "0":
            raise CompExportError(
                f"GPU {arguments['model_instance_device_id']}: the model runs on the first GPU that it sees; "
                "start one Triton for each GPU, with CUDA_VISIBLE_DEVICES"
            )
        name = arguments["model_name"]
        models = load_models(
            [f"{name}={version / ARTIFACT}"],
            DEFAULT_VARIANT,
            self.settings.limits,
            "cuda" if on_gpu else "cpu",
            self.settings.threads or None,
        )
        self.model: ServedModel = models.called(name)
        self.model.check_serves(GENERATES)

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue requests; the responses are sent from the worker's thread while others are read."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._queue(request, sender)
            except Exception as error:  # of this request alone
                _Answer(self._utils, sender).fail(error)

    def finalize(self) -> None:
        """Finish the answers that run, and stop."""
        self.model.worker.drain(DRAIN_SECONDS)
        self.model.worker.stop()

    def _queue(self, request: Any, sender: Any) -> None:
        def read(name: str) -> Any:
            tensor = self._utils.get_input_tensor_by_name(request, name)
            return None if tensor is None else tensor.as_numpy()

        asked = read_request(read, self.settings)
        work = self.model.prepare(asked.conversation, asked.images, asked.options)
        answer = _Answer(self._utils, sender, asked)
        self.model.worker.submit(_Cancellable(work, asked.options, answer.follow, sender=sender))


@dataclass
class _Cancellable(Request):
    """A request that ends when Triton's client has cancelled it, also while it waits."""

    sender: Any = None
    asked_at: float = 0.0

    @property
    def reason_to_end(self) -> CancelledError | None:
        """See ``Request``; asks Triton, which takes a message to its process, not at every step."""
        now = monotonic()
        if not self.cancelled.is_set() and now - self.asked_at > POLL_SECONDS:
            self.asked_at = now
            if self.sender.is_cancelled():
                self.cancel()
        return super().reason_to_end


@dataclass
class _Answer:
    """The responses of one request."""

    utils: Any
    sender: Any
    asked: Asked | None = None
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def follow(self, event: Event | BaseException) -> None:
        """Send what an event of the answer brings."""
        assert self.asked is not None
        if isinstance(event, Prefilled):
            return
        if isinstance(event, BaseException):
            self.fail(event)
        elif isinstance(event, TokenText):
            if self.asked.streams:
                self._send({TEXT_OUTPUT: event.text, TOKEN_IDS: [event.token_id]})
            else:
                self.tokens.append(event.token_id)
                self.texts.append(event.text)
        else:
            self._finish(event)

    def fail(self, error: BaseException) -> None:
        """End the request with an error; unexpected ones are logged, and not shown."""
        kinds = self.utils.TritonError
        if isinstance(error, CancelledError):
            code, message = kinds.CANCELLED, str(error)
        elif isinstance(error, QueueFullError):
            code, message = kinds.UNAVAILABLE, str(error)
        elif isinstance(error, CompExportError):
            code, message = kinds.INVALID_ARG, str(error)
        else:
            LOG.error("unexpected %s", type(error).__name__, exc_info=error)
            code, message = kinds.INTERNAL, "the model failed: see its log"
        response = self.utils.InferenceResponse(error=kinds(message, code))
        self.sender.send(response, flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _finish(self, event: Finished) -> None:
        assert self.asked is not None
        generation = event.generation
        values: dict[str, Any] = {
            TEXT_OUTPUT: "".join(self.texts) + event.text,
            FINISH_REASON: generation.finish_reason,
            INPUT_TOKENS: [generation.prompt_tokens],
            OUTPUT_TOKENS: [len(generation.token_ids)],
        }
        if self.tokens:
            values[TOKEN_IDS] = self.tokens
        kept = generation.kept.seen() if self.asked.images else []
        if kept:
            values[TOKENS_KEPT] = [tokens.size for _, tokens in kept]
        self._send(values, self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send(self, values: dict[str, Any], flags: int = 0) -> None:
        tensors = [self.utils.Tensor(name, _array(name, each)) for name, each in values.items()]
        self.sender.send(self.utils.InferenceResponse(output_tensors=tensors), flags=flags)


def _array(name: str, value: Any) -> Any:
    """A value as an array of the type that the configuration gives its tensor."""
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    return np.array(value, dtype=np.int64 if name == TOKEN_IDS else np.int32)
