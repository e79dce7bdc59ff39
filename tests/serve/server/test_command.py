"""``comp-export serve`` as a process: it starts, answers, drains at SIGTERM, and refuses bad starts."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from tests.serve.server.conftest import free_port

KEY = "a-key-of-some-length"


class Process:
    """The command in a process of its own."""

    def __init__(self, *arguments, env=None):
        self.port = free_port()
        command = [sys.executable, "-m", "comp.cli", "serve", *map(str, arguments)]
        command += ["--port", str(self.port), "--threads", "1", "--device", "cpu"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {})
        )
        self.url = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline
            try:
                httpx.get(f"{self.url}/health")
                return
            except httpx.TransportError:
                time.sleep(0.05)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def process_of():
    started = []

    def start(*arguments, **more):
        started.append(Process(*arguments, **more))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.mark.slow
def test_a_run_is_served_with_a_key_and_drains(run, process_of, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"another-key-of-length\n{KEY}\n")
    keys.chmod(0o600)
    server = process_of(run, "--api-keys", keys, "--max-num-seqs", "2")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/health/ready").json()["status"] == "ready"
    client = httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    ids = [each["id"] for each in client.get(f"{server.url}/v1/models").json()["data"]]
    assert len(ids) == 2
    request = {"model": ids[1], "messages": [{"role": "user", "content": "what is it?"}]}
    request |= {"stream": True, "max_tokens": 100, "temperature": 0}
    lines = []
    with client.stream("POST", f"{server.url}/v1/chat/completions", json=request) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not lines:
                server.process.send_signal(signal.SIGTERM)
            if line:
                lines.append(line)
    assert lines[-1] == "data: [DONE]", "an answer that runs is finished"
    assert server.process.wait(30) == 0
    with pytest.raises(httpx.TransportError):
        client.get(f"{server.url}/health")


def refused(*arguments):
    result = CliRunner().invoke(cli, ["serve", *map(str, arguments)])
    assert isinstance(result.exception, CompExportError), result.output
    return str(result.exception)


def test_bad_starts_are_refused(run, dense_artifact, running, tmp_path):
    assert f"port {running.port} is taken" in refused(run, "--port", running.port)
    port = ("--port", free_port())
    assert "no run" in refused(tmp_path / "none", *port)
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY)
    keys.chmod(0o644)
    assert "chmod 600" in refused(run, "--api-keys", keys, *port)
    keys.chmod(0o600)
    keys.write_text("short\n")
    assert "fewer than 16" in refused(run, "--api-keys", keys, *port)
    keys.write_text("\n")
    assert "has no key" in refused(run, "--api-keys", keys, *port)
    assert "are both called a" in refused(f"a={dense_artifact}", f"a={dense_artifact}", *port)
    assert "--keep-factor fast: give auto" in refused(run, "--keep-factor", "fast", *port)
    dense_alone = f"a={dense_artifact}"
    assert "takes a factor" in refused(dense_alone, "--keep-factor", "auto", *port)
    assert "--cache-memory" in refused(run, "--cache-memory", 1e-6, *port)
    assert json.dumps(KEY) not in refused(run, "--api-keys", tmp_path / "gone.txt", *port)
