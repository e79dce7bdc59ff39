"""Listen until a signal comes: the first ends the server after its requests, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from serve.server.app import DRAIN_SECONDS, make_app
from serve.server.settings import Server

BACKLOG = 512  # connections that wait to be accepted


def listen(server: Server, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C: finish the requests, take no more; a second signal ends it at once."""
    config = uvicorn.Config(
        make_app(server),
        host=host,
        port=port,
        log_config=None,  # serve.server.logs has configured it
        access_log=False,  # load balancers ask for health every second
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
        server_header=False,
    )
    _Listener(config).run()


class _Listener(uvicorn.Server):
    """uvicorn's server; it ends normally, where uvicorn's own raises the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs."""

        def handle(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.force_exit = self.should_exit
            self.should_exit = True

        before = {
            number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
