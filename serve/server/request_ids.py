"""Give each request an id, and write its line into the log when it has ended."""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.server.errors import response_of
from serve.server.logs import RECORD, Record

HEADER = "X-Request-Id"
FIT = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
QUIET = ("/health", "/health/ready", "/metrics")  # asked every few seconds; logged when they fail
ERRORS = 400


class RequestIds:
    """Wraps an application, outside of everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its response has ``X-Request-Id``."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(scope["method"], scope["path"])
        given = Headers(scope=scope).get(HEADER, "")
        if FIT.fullmatch(given):
            record.id = given
        status, complete = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = record.id
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        token = RECORD.set(record)
        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if status:
                raise
            await response_of(error)(scope, receive, watched)
        finally:
            RECORD.reset(token)
            if scope["path"] not in QUIET or status >= ERRORS:
                record.write(status, complete)
