"""Logs on stderr: a line of text or a JSON object for each request, never with keys."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

import click
from pydantic import BaseModel

from serve.generation.results import Generation

ROOT = "comp_export"
LOG = logging.getLogger(f"{ROOT}.requests")
START = logging.getLogger(f"{ROOT}.start")
UVICORN = "uvicorn"  # its lines get the same form
LONGEST = 200  # characters of a name that a client sends


@dataclass
class Record:
    """The fields of a line about a request.

    Attributes:
        id: the client's ``X-Request-Id``, or a new one.
        fields: further ones, in order: ``model``, tokens, times in milliseconds, ``finish_reason``.
        began: the clock at its start.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: uuid4().hex)
    fields: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=monotonic)

    def first_token(self) -> None:
        """The first token of the first choice came."""
        self.fields.setdefault("ttft_ms", self._passed())

    def finished(self, generation: Generation) -> None:
        """An answer ended; tokens of several choices are added."""
        seen = self.fields
        seen["prompt_tokens"] = generation.prompt_tokens
        seen["image_tokens"] = generation.image_tokens
        seen["cached_tokens"] = generation.cached_tokens
        seen["completion_tokens"] = seen.get("completion_tokens", 0) + len(generation.token_ids)
        seen["finish_reason"] = generation.finish_reason

    def failed(self, status: int) -> None:
        """An answer ended early with this status; a streamed one has sent 200 before."""
        self.fields["failed"] = status

    def write(self, status: int, complete: bool) -> None:
        """Log the request; ``complete``: whether its response was sent to the end."""
        ended = {} if complete else {"client_left": True}
        shown = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:LONGEST],
            "status": status,
            **self.fields,
            "duration_ms": self._passed(),
            **ended,
        }
        LOG.info("request", extra={"fields": shown})

    def _passed(self) -> float:
        return round((monotonic() - self.began) * 1e3, 1)


RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


def note_request(request: BaseModel, prompts: bool) -> None:
    """Add the model of a request to its line; with ``prompts`` its body, too, without images."""
    record = RECORD.get()
    if record is None:
        return
    record.fields["model"] = str(getattr(request, "model", ""))[:LONGEST]
    if prompts:
        record.fields["request"] = without_images(request.model_dump(exclude_unset=True))


def without_images(value: Any) -> Any:
    """JSON data with the SHA-256 of images in their place."""
    if isinstance(value, str):
        if not value.startswith("data:"):
            return value
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()} of {len(value)} characters"
    if isinstance(value, Mapping):
        return {str(key): without_images(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_images(each) for each in value]
    return value


def configure_logs(form: Literal["text", "json"]) -> None:
    """Send the lines of the server and of uvicorn to stderr in one form."""
    handler = _Stderr()
    handler.setFormatter(_Json() if form == "json" else _Text())
    for name, level in ((ROOT, logging.INFO), (UVICORN, logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


class _Stderr(logging.Handler):
    """Writes to stderr as it is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except (OSError, ValueError):  # stderr is closed: nobody reads
            self.handleError(record)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return json.dumps(shown, default=str)


class _Text(logging.Formatter):
    """Words for people; a request is one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if record.name != LOG.name or fields is None:
            return super().format(record)
        rest = " ".join(f"{name}={_word(each)}" for name, each in fields.items())
        return f"{_time(record)} {rest}"


def _word(value: Any) -> str:
    """A value without spaces or line breaks of its own, or quoted."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    plain = text.isprintable() and not set(text) & {" ", '"', "="}
    return text if plain or not isinstance(value, str) else json.dumps(text)
