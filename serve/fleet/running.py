"""Run a fleet until a signal comes: the first ends it after its requests, the second at once."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from comp.errors import CompExportError
from comp.utils.cluster import LOOPBACK, check_room, connected
from serve.fleet.config import FleetConfig
from serve.fleet.document import NAME


def run(
    config: FleetConfig, address: str | None, host: str, port: int, started: Callable[[str], None]
) -> None:
    """Deploy a fleet and serve until SIGTERM or Ctrl-C.

    On a cluster that runs already, only this application is removed at the end.

    Args:
        config: of the fleet.
        address: of the cluster; None starts one on this machine.
        host, port: where the proxies listen; a cluster whose proxies run already keeps theirs.
        started: called when the fleet is ready, with the address of the cluster.

    Raises:
        CompExportError: the cluster is too small, or a replica does not start.
    """
    with connected(address) as cluster, _two_signals() as ended:
        replicas = config.replicas
        share = {"CPU": replicas.cpus, "GPU": replicas.gpus}
        check_room({name: each for name, each in share.items() if each}, replicas.least, "replicas")
        import ray.serve as ray_serve

        deploy(config, host, port)
        started(cluster)
        ended.wait()
        ray_serve.delete(NAME)
        if address is None:
            ray_serve.shutdown()


def deploy(config: FleetConfig, host: str = LOOPBACK, port: int = 8000) -> None:
    """Deploy a fleet on the connected cluster, or update it.

    An update replaces replica after replica; an old one ends after its requests.

    Raises:
        CompExportError: a replica does not start.
    """
    import ray.serve as ray_serve

    from serve.fleet.application import build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start(http_options={"host": host, "port": port})
    try:
        ray_serve.run(build(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise CompExportError(
            f"the fleet does not start: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def _two_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process."""
    ended = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if ended.is_set():
            os._exit(128 + number)  # Ray ends its processes when their driver is gone
        ended.set()

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
