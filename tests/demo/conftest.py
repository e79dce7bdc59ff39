"""The engines of tests/serve on a run directory; small random runs of the other tasks."""

import socket
from functools import cache

import pytest

from demo import comparison
from demo.pair import Pair
from tests.serve.conftest import (  # noqa: F401
    checkpoint,
    compressed,
    compressed_artifact,
    dense,
    dense_artifact,
    picture,
    plan,
    run,
)


@pytest.fixture
def pair(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(comparison, "DRAWING_SECONDS", 0.0)
    return Pair.load(run, device="cpu", threads=1)


@pytest.fixture(scope="module")
def run_of(fresh_run):
    """The run of a model, pruned and exported."""
    return cache(fresh_run)


@pytest.fixture(scope="module")
def pair_of(run_of):
    """Both engines of a model, loaded at the first use."""
    made = {}

    def result(name):
        if name not in made:
            made[name] = Pair.load(run_of(name), device="cpu", threads=1)
        return made[name]

    return result


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
