"""A Ray cluster: one of this machine for the time of a command, or one that runs already."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comp.errors import CompExportError

PACKAGES = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: nodes are at 127.0.0.1
    "RAY_AUTH_MODE": "token",  # Ray's default, if it starts a cluster, but not if it connects to one
}
# The processes of a busy machine need longer to answer than Ray's 5 s.
PATIENT = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_raylet_start_wait_time_s": "120",
}


@contextmanager
def connected(address: str | None) -> Iterator[str]:
    """Connect to a cluster, or start one on this machine; yield its address.

    Afterwards one that was started ends; of another one only the connection does.

    A cluster that is started here has its nodes on 127.0.0.1, no dashboard, and sends no statistics of use.
    The nodes of another one must have this software installed.

    Args:
        address: of a cluster: ``HOST:PORT``, or ``auto`` for the one that runs on this machine; None starts
            one.

    Raises:
        CompExportError: no cluster answers at the address.
    """
    local = address is None or address.startswith(LOOPBACK)
    for name, value in {**QUIET, **PATIENT, **(LOCAL if local else {})}.items():
        os.environ.setdefault(name, value)  # read when ray is imported: not before this
    import ray

    with _visible_packages():
        try:
            if address is None:
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="warning",
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "on this machine" if address is None else f"at {address}"
            raise CompExportError(f"no Ray cluster {where}: {_first_line(error)}") from error
    try:
        if address is None and ray.util.get_node_ip_address() != LOOPBACK:
            raise CompExportError(
                f"the cluster listens on {ray.util.get_node_ip_address()}, not on {LOOPBACK} alone: Ray was "
                "imported before this; start one with `ray start --head` and give its address"
            )
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def check_room(each: dict[str, float], number: int, what: str) -> None:
    """Refuse a number of processes that the connected cluster can never hold.

    Args:
        each: resources of one, such as ``{"CPU": 1, "GPU": 0.5}``.
        number: of processes.
        what: the processes, as a message names them.

    Raises:
        CompExportError: names the resource and what there is of it.
    """
    import ray

    there = ray.cluster_resources()
    for name, share in each.items():
        if share * number > there.get(name, 0.0):
            raise CompExportError(
                f"{number} {what} of {share:g} {name} each need {share * number:g}, and the cluster has "
                f"{there.get(name, 0.0):g}: ask for fewer, or for less each"
            )


@contextmanager
def _visible_packages() -> Iterator[None]:
    """Let the workers of a cluster that starts now find these packages, also from a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGES), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no answer")
