"""The engines of tests/serve on a run directory; small random runs of the other tasks."""

import socket

import pytest
from click.testing import CliRunner

from comp.cli import cli
from demo import comparison
from demo.pair import Pair
from tests.comp.small_blip import random_blip
from tests.comp.small_clip import random_clip
from tests.serve.conftest import (  # noqa: F401
    checkpoint,
    compressed_artifact,
    dense_artifact,
    picture,
    plan,
    run,
)

QUICK = ("--stages", "2", "--steps-per-stage", "1", "--recover-steps", "1", "--batch-size", "4")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")
# What is served: models of every task.
MODELS = {
    "clip": lambda: random_clip(2, width=64),
    "question": lambda: random_blip("question", seed=2),
    "caption": lambda: random_blip("caption", seed=2),
    "statement": lambda: random_blip("statement", seed=2),
    "retrieval": lambda: random_blip("retrieval", seed=2),
}


@pytest.fixture
def pair(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(comparison, "DRAWING_SECONDS", 0.0)
    return Pair.load(run, device="cpu", threads=1)


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """The run of a model, pruned and exported when first asked for."""
    made = {}

    def found(name):
        if name not in made:
            base = tmp_path_factory.mktemp(name)
            MODELS[name]().save(base / "dense")
            call("prune", "--model", base / "dense", "--rate", "0.5", "--out", base / "run", *QUICK)
            call("onnx", base / "run")
            made[name] = base / "run"
        return made[name]

    return found


@pytest.fixture(scope="session")
def pair_of(run_of):
    """Both engines of a model, loaded when first asked for."""
    made = {}

    def found(name):
        if name not in made:
            made[name] = Pair.load(run_of(name), device="cpu", threads=1)
        return made[name]

    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
