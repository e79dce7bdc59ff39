"""The engines of tests/serve, on a run directory."""

import pytest

from demo import comparison
from demo.comparison import Pair
from tests.serve.conftest import (  # noqa: F401
    checkpoint,
    compressed_artifact,
    dense_artifact,
    picture,
    plan,
    run,
)


@pytest.fixture
def pair(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(comparison, "DRAWING_SECONDS", 0.0)
    return Pair.load(run, device="cpu", threads=1)
