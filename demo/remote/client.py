"""Ask a running ``comp-export serve``: JSON, and streamed answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from comp.errors import CompExportError

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 300.0
START = "start it with `comp-export serve`, or name its address with --server"
OTHER = "is it a `comp-export serve` of this version?"
EXAMPLE = "give an address such as http://127.0.0.1:8000"
DATA, DONE = "data: ", "[DONE]"


@dataclass(frozen=True)
class Remote:
    """A server.

    Attributes:
        url: its address, without ``/v1``.
        key: its API key; empty if it has none.
    """

    url: str
    key: str = ""
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        client = httpx.Client(base_url=self.url, headers=headers, timeout=limits)
        object.__setattr__(self, "_client", client)

    @classmethod
    def at(cls, url: str, key: str = "") -> "Remote":
        """Return the server at an address, with or without ``/v1`` at its end; it is not asked yet.

        Raises:
            CompExportError: it is no address of a server, or has a password in it.
        """
        shown = url if "@" not in url else url.rpartition("@")[2]
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise CompExportError(f"--server {shown}: {error}; {EXAMPLE}") from error
        known = parts.scheme in ("http", "https") and parts.hostname and port != 0
        if not known or parts.query or parts.fragment:
            raise CompExportError(f"--server {shown}: {EXAMPLE}")
        if parts.username or parts.password:
            raise CompExportError(
                f"--server {shown}: a key does not belong in the address; use --api-key-file"
            )
        return cls(url.rstrip("/").removesuffix("/v1"), key)

    @property
    def is_open(self) -> bool:
        """Whether a key would be sent to another machine without TLS."""
        parts = urlsplit(self.url)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        return bool(self.key) and parts.scheme == "http" and not local

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at a path.

        Raises:
            CompExportError: the server does not answer, or refuses; with its words.
        """
        with self._named_errors():
            response = self._client.get(path)
            self._check(response)
            return self._object(response.text)

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request, and yield the objects of its streamed answer, to the last.

        Closing the iterator ends the answer on the server.

        Raises:
            CompExportError: as ``get``; or the answer ends early.
        """
        with (
            self._named_errors(),
            self._client.stream("POST", path, json=body) as response,
        ):
            if response.is_error:
                response.read()
            self._check(response)
            for line in response.iter_lines():
                if not line.startswith(DATA):
                    continue
                words = line[len(DATA) :]
                if words == DONE:
                    return
                event = self._object(words)
                if "error" in event:
                    raise CompExportError(_message(event))
                yield event
        raise CompExportError(f"{self.url} ended the answer early: ask again")

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise CompExportError(self._refusal(response))

    def _refusal(self, response: httpx.Response) -> str:
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return f"{self.url} needs an API key: name a file with --api-key-file"
        try:
            return _message(self._object(response.text))
        except CompExportError:
            return f"{self.url} answered with status {response.status_code}: {OTHER}"

    def _object(self, words: str) -> dict[str, Any]:
        try:
            found = json.loads(words)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CompExportError(f"{self.url} answers something else: {OTHER}")
        return found

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the server in errors of the network."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise CompExportError(
                f"{self.url} takes too long: see its load at {self.url}/metrics"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise CompExportError(f"no server answers at {self.url} ({error}): {START}") from error


def _message(event: dict[str, Any]) -> str:
    """The words of an error in OpenAI's shape.

    Raises:
        CompExportError: it has another shape.
    """
    error = event.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        raise CompExportError(f"an error of another shape: {OTHER}")
    return str(error["message"])
