"""The entrance of a fleet, before replicas that end when a test says so; without Ray."""

import asyncio
import json

import httpx
import pytest
from pydantic import ValidationError

from comp.errors import CompExportError
from serve.fleet.config import FleetConfig
from serve.fleet.front import make_front
from serve.fleet.relay import Forwarded, Head, answer_of
from serve.fleet.retrying import LostError
from serve.scheduling.requests import QueueFullError

EVENTS = Head(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
WHOLE = Head(200, ((b"content-type", b"application/json"), (b"content-length", b"11")))
ASK = {"model": "tiny", "messages": []}


class Replicas:
    """Replicas whose answers are given: each a list of parts, in which an error is raised."""

    def __init__(self, *answers):
        self.answers, self.requests, self.ended = list(answers), [], 0

    async def send(self, model, request):
        self.requests.append((model, request))
        try:
            for part in self.answers.pop(0):
                await asyncio.sleep(0)
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.ended += 1

    async def running(self):
        return len(self.answers)


@pytest.fixture
def config(dense_artifact):
    return FleetConfig(models=[{"id": "tiny", "path": str(dense_artifact)}])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("serve.fleet.retrying.WAIT_SECONDS", 0.0)


def asked(config, replicas, path="/v1/chat/completions", method="POST", **more):
    async def ask():
        transport = httpx.ASGITransport(
            make_front(config, replicas.send, replicas.running), raise_app_exceptions=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def lost():
    return LostError("the replica that answered was lost")


def test_a_request_whose_replica_is_lost_goes_to_another(config):
    replicas = Replicas([lost()], [WHOLE, b'{"half":', lost()], [WHOLE, b'{"whole": ', b"1}"])
    answer = asked(config, replicas, json=ASK, headers={"Authorization": "Bearer secret"})
    assert answer.json() == {"whole": 1}
    assert replicas.ended == 3
    (model, request), *_ = replicas.requests
    assert model == "tiny"
    assert json.loads(request.body) == ASK
    assert b"authorization" not in dict(request.headers), "replicas get no keys"


def test_a_request_is_not_sent_to_a_fourth_replica(config):
    replicas = Replicas([lost()], [lost()], [lost()], [WHOLE, b'{"whole": 1}'])
    answer = asked(config, replicas, json=ASK)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert len(replicas.requests) == 3


def test_a_stream_that_has_not_begun_is_sent_again(config):
    replicas = Replicas([EVENTS, lost()], [EVENTS, b"data: 1\n\n", b"data: [DONE]\n\n"])
    answer = asked(config, replicas, json=ASK)
    assert answer.text == "data: 1\n\ndata: [DONE]\n\n"


def test_a_stream_that_is_cut_ends_with_an_error_that_clients_raise(config):
    replicas = Replicas([EVENTS, b"data: 1\n\n", lost()], [EVENTS, b"data: 2\n\n"])
    events = asked(config, replicas, json=ASK).text.split("\n\n")
    assert events[0] == "data: 1"
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert error["code"] == "replica_lost"
    assert "send the request again" in error["message"]
    assert events[2:] == [""], "nothing of a second answer, and no [DONE]"
    replicas = Replicas([EVENTS, b"data: 1\n\n", lost()])
    named = asked(config, replicas, "/v1/responses", json=ASK).text.split("\n\n")[1]
    assert named.startswith("event: error\ndata: ")
    assert json.loads(named.partition("data: ")[2])["code"] == "replica_lost"


def test_other_errors_are_not_tried_again(config):
    answer = asked(config, Replicas([QueueFullError("too many requests wait")]), json=ASK)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"]
    answer = asked(config, Replicas([ZeroDivisionError("secret")]), json=ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_bad_requests_reach_no_replica(config):
    none = Replicas()
    for body, status, words in (
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "give the id of a model"),
        (b'{"model": 1}', 400, "give the id of a model"),
        (b'{"model": "other"}', 404, "this server has tiny"),
    ):
        answer = asked(config, none, content=body)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
    assert not none.requests


def test_the_entrance_lists_models_and_says_when_it_is_ready(config, tmp_path):
    def got(path, replicas=1, **more):
        return asked(config, Replicas(*[[]] * replicas), path, "GET", **more)

    (model,) = got("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["comp_export"]["endpoint"] == "/v1/chat/completions"
    assert got("/v1/models/tiny").json() == model
    assert got("/v1/models/other").status_code == 404
    assert got("/health/ready").json() == {"status": "ready", "replicas": 1}
    assert got("/health/ready", replicas=0).status_code == 503
    assert got("/health").json() == {"status": "ok"}
    assert "/v1/embeddings" in got("/openapi.json").json()["paths"]
    assert "Ray exports them" in got("/metrics").json()["error"]["message"]
    assert got("/nothing").json()["error"]["type"] == "not_found_error"
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-some-length")
    keys.chmod(0o600)
    config = config.model_copy(update={"api_keys": str(keys)})
    assert got("/v1/models").status_code == 401
    assert got("/health").status_code == 200


def test_a_bad_configuration_is_refused(config):
    for change, words in (
        ({"models": [{"id": "a", "path": "x"}, {"id": "a", "path": "y"}]}, "two models"),
        ({"replicas": {"least": 2, "most": 1}}, "swap them"),
        ({"max_tokens": 1}, "max_tokens"),
    ):
        with pytest.raises(ValidationError, match=words):
            FleetConfig.model_validate({**config.model_dump(), **change})
    open_to_all = config.model_copy(update={"keys_required": True})
    with pytest.raises(CompExportError, match="COMP_EXPORT_API_KEYS"):
        make_front(open_to_all, Replicas().send, Replicas().running)
    missing = FleetConfig(models=[{"id": "a", "path": "/nowhere"}])
    with pytest.raises((CompExportError, FileNotFoundError)):
        make_front(missing, Replicas().send, Replicas().running)


def test_closing_an_answer_ends_the_application():
    ended = []

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"body"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0.001)
        finally:
            ended.append(scope["path"])

    async def leave():
        answer = answer_of(app, Forwarded("POST", "/v1/x", (), b"body"))
        assert isinstance(await anext(answer), Head)
        assert await anext(answer) == b"more"
        await answer.aclose()

    asyncio.run(leave())
    assert ended == ["/v1/x"]
