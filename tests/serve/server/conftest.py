"""A server in this process, on a free port, with uvicorn."""

import base64
import io
import socket
import threading
import time

import pytest
import uvicorn

from serve.artifacts import DEFAULT_VARIANT
from serve.server.app import make_app
from serve.server.models import Limits, load_models
from serve.server.settings import Server, Settings
from tests.serve.random_llava import noise


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A server that listens."""

    def __init__(self, server):
        self.server, self.port = server, free_port()
        config = uvicorn.Config(
            make_app(server), host="127.0.0.1", port=self.port, log_level="warning"
        )
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.uvicorn.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="session")
def running(dense_artifact, compressed_artifact):
    """Dense and compressed of one model."""
    places = [f"tiny={dense_artifact}", f"tiny-0.4={compressed_artifact}"]
    models = load_models(places, DEFAULT_VARIANT, Limits(rows=4, queue=32), "cpu", 1)
    started = Running(Server(models, Settings()))
    yield started
    started.stop()


def data_uri(picture):
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def uri():
    return data_uri(noise(0))
