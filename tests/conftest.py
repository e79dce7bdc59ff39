"""Property tests try the same cases every time: a failure is of the change at hand."""

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def fresh_run(tmp_path_factory):
    """A run of a small random CLIP (``clip``) or BLIP (by its task): ``tests.small_runs``."""
    from tests.small_runs import fresh_runs  # loads torch, which not every test needs

    return fresh_runs(tmp_path_factory.mktemp)
