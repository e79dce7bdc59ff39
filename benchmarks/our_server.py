"""Run ``comp-export serve`` in a process, to be measured."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from asking import Target
from comp.errors import CompExportError

START_SECONDS = 120.0
STOP_SECONDS = 60.0
LOG_SHOWN = 600  # characters of its log, if it does not start


@dataclass(frozen=True)
class Started:
    """A server of ours in a process."""

    url: str  # with /v1
    pid: int


@contextmanager
def serving(
    places: Path | Sequence[str], rows: int, threads: int, *options: str
) -> Iterator[Started]:
    """Serve a run, or several places, until the end of the block.

    Args:
        places: a run, or arguments of ``comp-export serve``.
        rows: answers that run together.
        threads: of every model; the ones of a run are not asked at the same time.
        options: other options of ``comp-export serve``.

    Raises:
        CompExportError: the server ended, or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = [str(places)] if isinstance(places, Path) else list(places)
    command = [sys.executable, "-m", "comp.cli", "serve", *named, "--port", str(port)]
    command += ["--max-num-seqs", str(rows), "--threads", str(threads), "--max-queue", "4096"]
    command += options
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryFile() as log:  # a line for every request
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield Started(f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Wait until the server answers; raise with the end of its log if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read()[-LOG_SHOWN:].decode(errors="replace").strip()
            raise CompExportError(f"comp-export serve did not start: {said}")
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.1)


def targets_of(name: str, url: str) -> list[Target]:
    """The models of a server: dense first."""
    ids = [each["id"] for each in httpx.get(f"{url}/models").json()["data"]]
    if len(ids) != 2:
        raise CompExportError(
            f"{len(ids)} models are served: name a run, or the dense and the compressed artifact"
        )
    return [
        Target(f"{name}, {kind}", url, model)
        for kind, model in zip(("dense", "compressed"), ids, strict=True)
    ]
