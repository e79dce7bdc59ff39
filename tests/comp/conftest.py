import pytest

from tests.comp.small import small_adapter


@pytest.fixture
def adapter():
    return small_adapter()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A directory with a small random LLaVA, written by transformers."""
    directory = tmp_path_factory.mktemp("small-llava") / "checkpoint"
    small_adapter().save(directory)
    return directory
