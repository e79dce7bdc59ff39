"""A fleet of two replicas on Ray: a replica that is killed, many models, an update, the end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import psutil
import pytest

from serve.fleet.config import FleetConfig
from tests.serve.server.conftest import free_port

# Ray alone starts eight processes: two busy cores take a minute for what a free machine does in ten seconds.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'"),
]
PATIENCE = 240.0
# In a process of its own: Ray reads its settings once, when a process imports it.
DEPLOY = """
import sys
from comp.utils.cluster import connected
from serve.fleet.config import FleetConfig
from serve.fleet.running import deploy
with connected(sys.argv[1]):
    deploy(FleetConfig.model_validate_json(sys.argv[2]), port=int(sys.argv[3]))
"""
TOKENS = 240  # of an answer: long enough to be cut


class Fleet:
    """``comp-export serve --ray`` as a process."""

    def __init__(self, log, *places):
        self.port, self.log = free_port(), log
        self.streams = {}  # by replica, the number of lines of a stream that runs there
        command = [sys.executable, "-m", "comp.cli", "serve", *places, "--ray", "--replicas", "2"]
        command += ["--models-per-replica", "1", "--port", str(self.port), "--json"]
        command += ["--threads", "1", "--device", "cpu"]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        line = self.process.stdout.readline()  # comes when all replicas are ready
        assert line, log.read_text()
        self.started = json.loads(line)

    def ask(self, model, stream=False, tokens=TOKENS, begun=None):
        """Return the words of an answer, and the error that ended it, if one did."""
        body = {"model": model, "messages": [{"role": "user", "content": "what is it?"}]}
        body |= {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        url, words = f"http://127.0.0.1:{self.port}/v1/chat/completions", []
        with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
            if not stream:
                answer = client.post(url, json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()["choices"][0]["message"]["content"], None
            with client.stream("POST", url, json=body) as answer:
                assert answer.status_code == 200, answer.read()
                lines, replica = [], answer.headers["X-Comp-Export-Replica"]
                for line in answer.iter_lines():
                    lines += [line] if line else []
                    self.streams[replica] = len(lines)
                    if begun is not None:
                        begun.set()
        if lines[-1] == "data: [DONE]":
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
            words = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
            return "".join(words), None
        assert len(lines) > 1, "an answer that had not begun was not sent again"
        return None, json.loads(lines[-1].removeprefix("data: "))["error"]

    def replicas(self):
        """Processes of replicas."""
        return [
            each
            for each in psutil.Process(self.process.pid).children(recursive=True)
            if "ServeReplica" in "".join(each.cmdline()) and "Models" in "".join(each.cmdline())
        ]

    def streaming(self):
        """The process of a replica that streams: the name of its log has the id that its answers have."""
        deadline = time.monotonic() + PATIENCE
        while not (names := [name for name, lines in self.streams.items() if 5 < lines < 50]):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        (process,) = (
            each
            for each in self.replicas()
            if any(names[0] in file.path for file in each.open_files())
        )
        return process

    def ready(self, number):
        """Wait for a number of replicas."""
        deadline = time.monotonic() + PATIENCE
        while True:
            state = httpx.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=PATIENCE).json()
            if state.get("replicas") == number and len(self.replicas()) == number:
                return
            assert time.monotonic() < deadline, state
            time.sleep(0.5)

    def end(self):
        if self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


class Load:
    """Clients that ask again and again until told to stop."""

    def __init__(self, ask, clients):
        self.answers, self.failures = [], []
        self._ask, self._over = ask, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(clients)
        ]

    def _run(self, number):
        while not self._over.is_set():
            try:
                self.answers.append(self._ask(number))
            except Exception as error:
                self.failures.append(error)

    def until(self, number):
        """Wait for a number of answers more."""
        wanted, deadline = len(self.answers) + number, time.monotonic() + PATIENCE
        while len(self.answers) < wanted and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def places(dense_artifact, compressed_artifact, tmp_path_factory):
    """Two artifacts, where a running fleet reads them."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, artifact in (("tiny", dense_artifact), ("tiny-0.4", compressed_artifact)):
        shutil.copytree(artifact, folder / name)
    return folder


@pytest.fixture(scope="module")
def fleet(places, tmp_path_factory):
    log = tmp_path_factory.mktemp("fleet") / "log.txt"
    started = Fleet(log, str(places / "tiny"), str(places / "tiny-0.4"))
    yield started
    started.end()


def test_a_killed_replica_loses_no_request_that_had_not_begun_to_stream(fleet):
    whole, _ = fleet.ask("tiny")
    assert fleet.ask("tiny", stream=True) == (whole, None)
    with Load(lambda number: fleet.ask("tiny", stream=number % 2 == 0), 10) as load:
        load.until(10)
        fleet.streaming().kill()
        load.until(20)
    assert not load.failures
    cut = [error for _, error in load.answers if error is not None]
    assert cut, "none was cut: the test killed an idle replica"
    assert {error["code"] for error in cut} == {"replica_lost"}
    assert {words for words, error in load.answers if error is None} == {whole}
    fleet.ready(2)


def test_models_share_replicas_and_stream(fleet):
    dense, compressed = fleet.ask("tiny", tokens=20)[0], fleet.ask("tiny-0.4", tokens=20)[0]
    assert dense != compressed
    with Load(lambda number: fleet.ask(["tiny", "tiny-0.4"][number], True, 20), 2) as load:
        load.until(8)
    assert not load.failures
    assert {words for words, _ in load.answers} == {dense, compressed}


def test_an_artifact_is_replaced_without_a_failed_request(fleet, places):
    old, new = fleet.ask("tiny", tokens=20)[0], fleet.ask("tiny-0.4", tokens=20)[0]
    models = [{"id": "tiny", "path": str(places / "tiny-0.4")}]
    replicas = {"least": 2, "most": 2, "models_each": 1}
    # Few may run and wait: the next test asks for more.
    few = {"max_num_seqs": 1, "max_queue": 2}
    config = FleetConfig(models=models, replicas=replicas, threads=1, device="cpu", **few)
    with Load(lambda number: fleet.ask("tiny", number == 0, 20), 2) as load:
        load.until(2)
        words = [fleet.started["ray"], config.model_dump_json(), str(fleet.port)]
        subprocess.run([sys.executable, "-c", DEPLOY, *words], check=True, timeout=PATIENCE)
        load.until(4)
    assert not load.failures
    assert {words for words, _ in load.answers} == {old, new}
    assert fleet.ask("tiny", tokens=20)[0] == new


def test_more_requests_than_may_wait_are_refused(fleet):
    url, body = f"http://127.0.0.1:{fleet.port}/v1/chat/completions", {"model": "tiny"}
    body |= {"messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 40}
    client = httpx.Client(
        timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_connections=None)
    )
    with client, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: client.post(url, json=body), range(64)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["Retry-After"]
    assert len(refused.headers.get_list("X-Request-Id")) == 1


def test_it_ends_at_sigterm_after_its_requests(fleet):
    begun, whole = threading.Event(), fleet.ask("tiny")[0]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fleet.ask, "tiny", stream=True, begun=begun)
        assert begun.wait(PATIENCE)
        os.kill(fleet.process.pid, signal.SIGTERM)
        assert answer.result(PATIENCE) == (whole, None)
    assert fleet.process.wait(PATIENCE) == 0, fleet.log.read_text()
