"""Check visitors' requests before Gradio reads, fetches or opens anything."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comp.errors import CompExportError
from demo.cards.html import plain
from demo.uploads import MAX_FILE_BYTES, MAX_FOLDER_BYTES, Uploads

MAX_TEXT = 32_768  # characters of a text: 200 captions of a line and a half
MAX_BODY = 512 * 1024  # bytes of a request other than an upload
FORM_BYTES = 64 * 1024  # overhead of a form around its file
SWEEP_SECONDS = 60.0
API = "/gradio_api"
FILE, UPLOAD = f"{API}/file=", f"{API}/upload"
# Routes that the page and Gradio's clients use. Gradio's other routes are closed: some fetch from
# other hosts, start other programs, or read files by other rules.
OPEN = (
    "/assets/",
    "/static/",
    "/svelte/",
    f"{API}/heartbeat/",
    f"{API}/call/",
    f"{API}/run/",
    f"{API}/api/",
    FILE,
)
PLACES = (
    *("app_id", "cancel", "info", "login_check", "openapi.json", "queue/data", "queue/join"),
    *("reset", "startup-events", "theme.css", "token", "upload_progress", "user"),
)
OPEN_EXACTLY = frozenset(
    [
        *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", UPLOAD),
        *(f"{API}/{name}" for name in PLACES),
    ]
)


class Page(gr.Blocks):
    """A page that checks its inputs, from every route."""

    def __init__(self, uploads: Uploads, **options: Any) -> None:
        super().__init__(**options)
        self.uploads = uploads

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Check inputs, then process them as Gradio does.

        Raises:
            gradio.Error: names what is wrong; it is shown to the visitor.
        """
        wanted = block_fn.inputs
        try:
            if len(inputs) < len(wanted):
                raise CompExportError(f"{len(inputs)} inputs, and this takes {len(wanted)}")
            checked = [
                check_input(part, value, self.uploads)
                for part, value in zip(wanted, inputs, strict=False)
            ]
        except CompExportError as error:
            raise not_possible(str(error)) from error
        result: list[Any] = await super().preprocess_data(block_fn, checked, state, explicit_call)
        return result


def not_possible(words: str) -> gr.Error:
    """The error shown to a visitor; nothing is logged."""
    return gr.Error(plain(words), title="Not possible", print_exception=False)


def check_input(part: Any, value: Any, uploads: Uploads) -> Any:
    """Check the input of one component of the page.

    Args:
        part: Gradio's component.
        value: from JSON.
        uploads: the files that may be opened.

    Returns:
        The value, reduced to what the page needs.

    Raises:
        CompExportError: the component does not take this value.
    """
    if isinstance(part, gr.State):
        return None  # kept in the session; the input is ignored
    if isinstance(part, gr.Image):
        return _picture(value, uploads)
    if isinstance(part, gr.Slider):
        return _number(value, part.minimum, part.maximum)
    if isinstance(part, (gr.Textbox, gr.Radio)):
        return "" if value is None and isinstance(part, gr.Textbox) else _text(value)
    raise CompExportError(f"{type(part).__name__} takes no input")


def _picture(value: Any, uploads: Uploads) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CompExportError("a picture is an upload: send it to the page first")
    path = str(uploads.picture(value.get("path")))
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _number(value: Any, least: float, most: float) -> float:
    number = (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    )
    if number is None or not math.isfinite(number) or not least <= number <= most:
        shown = repr(value)[:40]
        raise CompExportError(f"{shown} is no number from {least:g} to {most:g}")
    return number


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise CompExportError(f"a text is expected, not {type(value).__name__}")
    if len(value) > MAX_TEXT:
        raise CompExportError(f"a text of {len(value)} characters: give at most {MAX_TEXT}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CompExportError(
            f"the text has half a character at place {error.start}: write it again"
        ) from error
    return value


def chosen_of(event: gr.SelectData, among: Sequence[Any]) -> int:
    """The index that a visitor clicked.

    Raises:
        gradio.Error: it is not a valid index.
    """
    index = event.index
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(among):
        raise not_possible(f"no number {str(index)[:40]} here: choose one of {len(among)}")
    return index


class Gate:
    """Middleware before Gradio's server: checks routes, files and sizes of requests."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer requests that are not allowed, pass the others on; bodies are cut at their limit."""
        if scope["type"] == "websocket":
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        most = MAX_FILE_BYTES + FORM_BYTES if path == UPLOAD else MAX_BODY
        try:
            self._check(path)
            length = dict(scope["headers"]).get(b"content-length", b"")
            if length.isdigit() and int(length) > most:
                raise too_large(most)
            await self.app(scope, bounded(receive, most), send)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code)
            await answer(scope, receive, send)

    def _check(self, path: str) -> None:
        if path.startswith(FILE):
            try:
                self.uploads.own(path[len(FILE) :])
            except CompExportError as error:
                raise HTTPException(403, str(error)) from error
        elif path == UPLOAD and self.uploads.size > MAX_FOLDER_BYTES:
            raise HTTPException(503, "the page has as many pictures as it keeps: try again later")
        elif path not in OPEN_EXACTLY and not path.startswith(OPEN):
            raise HTTPException(404, "there is no such place on this page")


def bounded(receive: Receive, most: int) -> Receive:
    """Receive a body; raise an error if it exceeds the limit."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise too_large(most)
        return message

    return counted


def too_large(most: int) -> HTTPException:
    return HTTPException(413, f"a request of more than {most} bytes: send less")


def sweeping(uploads: Uploads) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Delete old uploads while the server runs."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        keep = frozenset(path for path, _ in uploads.files())  # the page's own pictures

        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                await asyncio.to_thread(uploads.sweep, keep)

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
