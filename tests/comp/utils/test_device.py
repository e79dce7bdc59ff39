"""Threads of torch follow the usable cores."""

import pytest
import torch

from comp.utils import device


@pytest.fixture
def threads(monkeypatch):
    """The number that torch was last given; it has 8 threads to begin with."""
    given = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    return given


@pytest.mark.parametrize(("cores", "expected"), [(2, [2]), (8, []), (16, [])])
def test_torch_has_no_more_threads_than_usable_cores(threads, monkeypatch, cores, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    assert device.torch_device("cpu") == "cpu"
    assert threads == expected


def test_a_number_that_the_user_gave_stays(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    device.torch_device("cpu")
    assert threads == []
