"""Images from other hosts: only allowed ones, at public addresses, without redirects, bounded."""

import asyncio
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serve.server import remote_images
from serve.server.errors import ApiError
from serve.server.remote_images import RemoteImages


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
            return
        if self.path == "/slow":
            self.server.release.wait(5)
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(b"x" * (5000 if self.path == "/large" else 10))

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = HTTPServer(("127.0.0.1", 0), Pictures)
    server.hosts, server.release = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()


def fetched(url, *hosts, max_bytes=1000, seconds=2.0):
    return asyncio.run(RemoteImages(hosts, max_bytes, seconds).fetch(url, "image"))


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        "http://allowed.example.evil.example/a.png",
        "http://allowed.example:8080/a.png",
        "http://user:word@allowed.example/a.png",
        "http://allowed.example@10.0.0.1/a.png",
        "http:///a.png",
        "http://allowed.example:99999/",
    ],
)
def test_hosts_that_are_not_allowed(url):
    with pytest.raises(ApiError):
        fetched(url, "allowed.example")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "::1", "fe80::1%1", "fd00::1", "::ffff:127.0.0.1"),
    ],
)
def test_addresses_inside_are_refused(address, monkeypatch):
    async def resolved(self, *_, **__):
        return [
            (socket.AF_INET, None, 0, "", ("93.184.216.34", 80)),
            (0, None, 0, "", (address, 80)),
        ]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolved)
    with pytest.raises(ApiError, match="no public address"):
        fetched("http://allowed.example/a.png", "allowed.example")


def test_a_public_address_is_one():
    assert remote_images._is_public("93.184.216.34")
    assert remote_images._is_public("2606:2800:220:1:248:1893:25c8:1946")


def test_fetching_from_an_allowed_host(host, monkeypatch):
    monkeypatch.setattr(remote_images, "_is_public", lambda address: True)
    name = f"localhost:{host.server_port}"
    assert fetched(f"http://{name}/a.png", name) == b"x" * 10
    assert host.hosts == [name], (
        "the name is sent, though the connection goes to the checked address"
    )
    for path, words in (("away", "302"), ("none", "404"), ("large", "more than 1000 bytes")):
        with pytest.raises(ApiError, match=words):
            fetched(f"http://{name}/{path}", name)
    with pytest.raises(ApiError, match=r"longer than|Timeout"):
        fetched(f"http://{name}/slow", name, seconds=0.2)
    assert len(host.hosts) == 5


def test_loopback_is_refused_though_it_is_allowed(host):
    with pytest.raises(ApiError, match="no public address"):
        fetched(f"http://localhost:{host.server_port}/a.png", f"localhost:{host.server_port}")
    assert host.hosts == []
