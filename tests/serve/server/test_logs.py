"""The log: an id, model, tokens and times of each request; words only on demand, keys never."""

import json
import logging
import time
from dataclasses import replace

import httpx
import pytest

from serve.artifacts import DEFAULT_VARIANT
from serve.server.logs import configure_logs
from serve.server.models import Limits, load_models
from serve.server.settings import Server, Settings
from tests.serve.server.conftest import Running
from tests.serve.server.test_openai_client import asking

KEY = "a-key-of-some-length"
WORDS = "where is the red dog?"


@pytest.fixture(scope="module")
def served(compressed_artifact):
    models = load_models([f"tiny={compressed_artifact}"], DEFAULT_VARIANT, Limits(rows=2), "cpu", 1)
    started = Running(Server(models, Settings(keys=(KEY,))))
    yield started
    started.stop()


@pytest.fixture
def lines(served, capsys, request):
    """Log to stderr in a form, and return what was written."""
    before = map(logging.getLogger, ("comp_export", "uvicorn"))
    kept = [(each, each.handlers, each.propagate, each.level) for each in before]
    configure_logs(getattr(request, "param", "json"))

    def written(count):
        """Wait for some lines: they are written when the client has its answer."""
        text, deadline = "", time.monotonic() + 20
        while len(text.splitlines()) < count and time.monotonic() < deadline:
            time.sleep(0.01)
            text += capsys.readouterr().err
        return text.splitlines()

    yield written
    for each, handlers, propagate, level in kept:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def post(served, body, **headers):
    headers = {"Authorization": f"Bearer {KEY}", **headers}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def question(uri, **more):
    return {"model": "tiny", "messages": asking(uri, WORDS), "max_tokens": 4, **more}


def test_a_request_is_a_json_object_without_its_words(served, lines, uri):
    done = post(served, question(uri), **{"X-Request-Id": "from-my-proxy.1"})
    assert done.headers["X-Request-Id"] == "from-my-proxy.1"
    (line,) = lines(1)
    said = json.loads(line)
    usage = done.json()["usage"]
    assert said["event"] == "request"
    assert said["request_id"] == "from-my-proxy.1"
    assert (said["method"], said["path"]) == ("POST", "/v1/chat/completions")
    assert (said["model"], said["status"]) == ("tiny", 200)
    assert said["prompt_tokens"] == usage["prompt_tokens"]
    assert said["completion_tokens"] == usage["completion_tokens"]
    assert 0 < said["ttft_ms"] <= said["duration_ms"]
    assert "client_left" not in said
    for secret in (KEY, "red dog", uri[-40:]):
        assert secret not in line


def test_a_streamed_answer_is_logged_when_it_ended(served, lines, uri):
    done = post(served, question(uri, stream=True), **{"X-Request-Id": "a b"})
    assert done.text.endswith("data: [DONE]\n\n")
    said = json.loads(lines(1)[-1])
    assert said["request_id"] == done.headers["X-Request-Id"] != "a b"
    assert said["completion_tokens"] <= 4
    assert said["finish_reason"] in ("eos", "length")


def test_refused_requests_are_logged(served, lines, uri):
    nobody = httpx.post(f"{served.url}/v1/chat/completions", json=question(uri))
    unknown = post(served, question(uri) | {"model": "gone\n{}"})
    assert (nobody.status_code, unknown.status_code) == (401, 404)
    first, second = map(json.loads, lines(2))
    assert (first["status"], first.get("model")) == (401, None)
    assert (second["status"], second["model"]) == (404, "gone\n{}")
    assert first["request_id"] == nobody.headers["X-Request-Id"]


def test_checks_of_health_are_not_logged(served, lines):
    for path in ("health", "health/ready"):
        assert "X-Request-Id" in httpx.get(f"{served.url}/{path}").headers
    httpx.get(f"{served.url}/v1/models")
    (line,) = lines(1)
    assert json.loads(line)["path"] == "/v1/models"


def test_an_unexpected_error_is_one_object(served, lines, uri, monkeypatch):
    def fails(*_):
        raise RuntimeError("broken inside")

    monkeypatch.setattr(served.server.models, "called", fails)
    done = post(served, question(uri))
    assert done.status_code == 500
    assert "broken" not in done.text
    error, said = map(json.loads, lines(2))
    assert "RuntimeError: broken inside" in error["exception"]
    assert (said["status"], said["request_id"]) == (500, done.headers["X-Request-Id"])


def test_words_are_logged_on_demand_and_pictures_by_their_hash(served, lines, uri, monkeypatch):
    settings = replace(served.server.settings, log_prompts=True)
    monkeypatch.setattr(served.server, "settings", settings)
    post(served, question(uri))
    (line,) = lines(1)
    assert WORDS in line
    assert uri[-40:] not in line
    (shown,) = json.loads(line)["request"]["messages"]
    assert shown["content"][0]["image_url"]["url"].startswith("sha256:")


@pytest.mark.parametrize("lines", ["text"], indirect=True)
def test_text_is_one_line_whatever_a_client_sends(served, lines, uri):
    post(served, question(uri) | {"model": "gone\nstatus=200 forged"})
    (line,) = lines(1)
    assert "status=404" in line
    assert r'model="gone\nstatus=200 forged"' in line
