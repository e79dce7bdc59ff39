"""Hostile requests: the OpenAPI document against the server, malformed and huge bodies, bad images."""

import base64
import json
import socket
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from serve.server.settings import Settings

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def http(running):
    with httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.mark.slow
def test_requests_by_the_schema_give_no_5xx(running):
    schemathesis = pytest.importorskip("schemathesis", reason="needs Python 3.11 or newer")
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) == 12
    for operation in operations:

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attack(case):
            response = case.call()
            assert response.status_code < 500, response.text

        attack()


def chat(content="what is it?", **more):
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 2,
    } | more


def picture(data):
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "what?"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"model": "tiny", "messages": ' + b"[" * 5000,
        json.dumps(chat(5)).encode(),
        json.dumps(chat([])).encode(),
        json.dumps(chat(max_tokens=-1)).encode(),
        json.dumps(chat(max_tokens=10**30)).encode(),
        json.dumps(chat(temperature="hot")).encode(),
        json.dumps(chat(seed=10**40)).encode(),
        json.dumps(chat(n=10**6)).encode(),
        json.dumps(chat(stop=[""])).encode(),
        json.dumps(chat(stop="a" * 10**6)).encode(),
        json.dumps(chat("\ud800")).encode(),
        json.dumps(chat("\x00" * 50)).encode(),
        json.dumps(chat([{"type": "text", "text": "a"}] * 5000)).encode(),
        json.dumps(chat(picture(b"") * 20)).encode(),
        json.dumps(chat(picture(b"not a picture"))).encode(),
        json.dumps(chat(picture(b"\x89PNG\r\n\x1a\n" + b"\x00" * 100))).encode(),
        json.dumps(chat(keep_factor=float("nan"))).encode(),
        json.dumps(chat(temperature=float("inf"))).encode(),
    ],
    ids=range(25),
)
def test_malformed_bodies_are_refused(http, body):
    response = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert len(response.text) < 5000


def test_bodies_beyond_the_limit_are_refused_unread(http, running):
    most = Settings().max_body
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {most + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1000).splitlines()[0]

    def endless():
        for _ in range(most // 2**20 + 2):
            yield b" " * 2**20

    assert http.post(CHAT, content=endless()).status_code == 413
    assert http.get("/health").status_code == 200


def test_a_bomb_is_refused_before_it_is_decoded(http):
    import io

    from PIL import Image

    with io.BytesIO() as file:
        Image.new("1", (30_000, 30_000)).save(file, "PNG")
        bomb = file.getvalue()
    assert len(bomb) < 2**20
    began = time.monotonic()
    response = http.post(CHAT, json=chat(picture(bomb)))
    assert response.status_code == 400
    assert "too large" in response.json()["error"]["message"]
    assert time.monotonic() - began < 30


def test_a_slow_client_does_not_hold_the_others(running, http):
    slow = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
    for each in slow:
        each.sendall(
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
    assert http.post(CHAT, json=chat()).status_code == 200
    for each in slow:
        each.close()


def test_a_client_that_leaves_ends_its_answer(running, http):
    model = running.server.models.called("tiny")
    body = json.dumps(chat(max_tokens=150, stream=True, temperature=1.9, seed=3)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100)
    deadline = time.monotonic() + 20
    while model.worker.load.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_other_paths_and_methods(http):
    assert http.get("/nowhere").status_code == 404
    assert http.get("/nowhere").json()["error"]["type"] == "not_found_error"
    assert http.get(CHAT).status_code == 405
    assert http.get("/v1/models/none").status_code == 404
    assert http.get("/v1/models/../../etc/passwd").status_code == 404
