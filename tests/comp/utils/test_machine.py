"""What a process may use of a machine."""

import sys

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


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n", 8),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "1600000 100000\n"}, "0::/\n", 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "", 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "", 8),
        ({"job/cpu.max": "max 100000\n", "cpu.max": "garbage"}, "0::/job/step\n", 8),
        ({"job/cpu.max": "400000 100000\n"}, "0::/job/step\n", 4),
        (
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
            },
            "5:memory:/other\n4:cpu,cpuacct:/job\n",
            2,
        ),
        ({}, "0::/../outside\n", 8),
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_usable_cores_follow_quotas(files, own, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.usable_cores() == expected
