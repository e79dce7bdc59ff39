"""What a process may use of a machine."""

import pytest

from comp.utils import machine


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1073741824\n", 1024),
        ("max\n", None),
        ("9223372036854771712\n", None),  # "no limit" of version 1
        (None, None),
    ],
)
def test_a_lower_container_limit_is_used(written, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", ())
    whole = machine.memory_mb()
    assert whole > 1024
    path = tmp_path / "memory.max"
    if written is not None:
        path.write_text(written)
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (path, tmp_path / "none"))
    assert machine.memory_mb() == (expected or whole)
