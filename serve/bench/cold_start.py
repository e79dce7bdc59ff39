"""Measure cold start and peak memory in a fresh process that loads an artifact and answers once.

``python -m serve.bench.cold_start ARTIFACT WORK DEVICE THREADS PROVIDER BACKEND STARTED`` prints JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.errors import CompExportError

if TYPE_CHECKING:
    from serve.bench.request import BenchRequest

TIMEOUT = 600.0


@dataclass(frozen=True)
class Probe:
    """Milliseconds since the process was started; memory in MiB."""

    cold_start_ms: float  # until the first visible token or result
    load_ms: float  # share of that: loading the artifact and checking its hashes
    peak_rss_mb: float


def probe(
    artifact: Path,
    work: "BenchRequest",
    device: str,
    threads: int,
    provider: str = "auto",
    backend: str = "onnxruntime",
) -> Probe:
    """Measure an artifact in a fresh process.

    Raises:
        CompExportError: the process failed; quotes the last line of its output.
    """
    packages = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        request = work.save(Path(folder))
        arguments = [str(artifact), str(request), device, str(threads), provider, backend]
        command = [sys.executable, "-m", "serve.bench.cold_start", *arguments, repr(time.time())]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                env={**os.environ, "PYTHONPATH": path},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CompExportError(
                f"measuring {artifact} in a fresh process took over {TIMEOUT:.0f} s: "
                "use fewer tokens"
            ) from error
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompExportError(f"measuring {artifact} in a fresh process failed: {words[-1]}")
    return Probe(**json.loads(done.stdout))


def _main(arguments: list[str]) -> None:
    artifact, request, device, threads, provider, backend, started = arguments
    from serve.bench.request import BenchRequest, perform_noting
    from serve.loading import load_engine

    begin = time.time()
    options: Any = {"device": device, "provider": provider, "backend": backend}  # checked by load
    engine = load_engine(Path(artifact), threads=int(threads), **options)
    loaded = time.time()
    shown: list[float] = []
    perform_noting(engine, BenchRequest.load(Path(request)), lambda: shown.append(time.time()))
    result = Probe(
        cold_start_ms=(shown[0] - float(started)) * 1000,
        load_ms=(loaded - begin) * 1000,
        peak_rss_mb=peak_rss_mb(),
    )
    sys.stdout.write(json.dumps(result.__dict__))


def peak_rss_mb() -> float:
    """Peak resident memory of this process image.

    Linux's ``getrusage`` also counts the parent's memory at the fork, ``VmHWM`` does not.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    _main(sys.argv[1:])
