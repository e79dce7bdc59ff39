"""Errors in the shape of OpenAI's API: what is wrong, with which parameter, and no traceback."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from comp.errors import CompExportError
from serve.scheduling.requests import CancelledError, QueueFullError

LOG = logging.getLogger("comp_export.server")
RETRY_SECONDS = 1  # of Retry-After, if the queue is full
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(CompExportError):
    """An error that the client is told.

    Args:
        message: what is wrong, and the remedy.
        status: HTTP status.
        param: the field of the request.
        code: OpenAI's code, such as ``model_not_found``.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body_of(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response_of(error: BaseException) -> JSONResponse:
    """The response to an error of a request; unexpected ones are logged, and not shown."""
    if isinstance(error, ApiError):
        body = body_of(str(error), error.status, error.param, error.code)
        return JSONResponse(body, error.status, _retry(error.status))
    if isinstance(error, QueueFullError):
        return JSONResponse(body_of(str(error), 429, code="queue_full"), 429, _retry(429))
    if isinstance(error, CancelledError):
        return JSONResponse(body_of(str(error), 408, code="cancelled"), 408)
    if isinstance(error, CompExportError):
        return JSONResponse(body_of(str(error), 400), 400)
    LOG.error("unexpected %s", type(error).__name__, exc_info=error)
    return JSONResponse(body_of("the server failed: see its log", 500), 500)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the app in OpenAI's shape."""

    async def own(_: Request, error: Exception) -> JSONResponse:
        return response_of(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place or 'the body'}: {first['msg']}"
        return JSONResponse(body_of(message, 400, place or None), 400)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return JSONResponse(
            body_of(str(error.detail), error.status_code), error.status_code, headers
        )

    app.add_exception_handler(CompExportError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _retry(status: int) -> dict[str, str]:
    return {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
