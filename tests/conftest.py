"""Set-up of all tests: reproducible cases, signals, order, and runs of small models."""

import os
import signal

import pytest
from hypothesis import settings

from tests.drawing import leave_out_figures

# The same cases every time: a failure comes from the change.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# On a busy machine a browser sometimes loses a click while a page is being built.
ANOTHER_TRY = pytest.mark.flaky(reruns=2, only_rerun=["TimeoutError"])

LONGEST = "test_full_"  # files of tests that take minutes each


def pytest_configure():
    # Processes that a shell starts in the background ignore Ctrl-C, which some tests send theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leave_out_figures()


def pytest_collection_modifyitems(items):
    # First, so that no process is still running them at the end.
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(ANOTHER_TRY)


@pytest.fixture(scope="session")
def fresh_run(tmp_path_factory):
    """A run of a small random CLIP (``clip``) or BLIP (by its task): ``tests.small_runs``."""
    from tests.small_runs import fresh_runs  # loads torch, which not every test needs

    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return fresh_runs(tmp_path_factory.mktemp, together / "small-runs")


@pytest.fixture
def no_weights(monkeypatch):
    """Fail on every load of weights: refusals must come before it."""
    from comp.errors import CompExportError
    from comp.families import loading

    def read(*_given, **_named):
        raise CompExportError("the weights are read")

    monkeypatch.setattr(loading, "_load_model", read)
