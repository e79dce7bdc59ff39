"""Describe the machine and the package versions of a measurement."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Files of control groups, version 2 and 1, as a container sees its own.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_PACKAGES = (
    "comp-export",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numpy",
    "pillow",
    "tokenizers",
)


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, memory in MiB, and system."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_mb": memory_mb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that run artifacts."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Number of cores that this process may use: by its affinity and the quotas of its control groups.

    A quota of one and a half cores counts as one: a second thread would be stopped half of the time.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return min([len(os.sched_getaffinity(0)), *(max(1, int(quota)) for quota in _cpu_quotas())])


def _cpu_quotas() -> Iterator[float]:
    """Yield quotas in cores of this process's control groups and of those around them, version 2 and 1."""
    for folder in _own_cgroups():
        with suppress(
            OSError, ValueError
        ):  # not a quota: there is no such file, or it says ``max``
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            if int(quota) > 0:  # -1: no limit
                yield int(quota) / int(period)


def _own_cgroups() -> Iterator[Path]:
    """Yield the folders of this process's control groups up to the roots; a container sees only roots."""
    roots = [CGROUPS, CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"]
    yield from roots
    with suppress(OSError):
        for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = CGROUPS / controllers if controllers else CGROUPS
            inside = Path(own.lstrip("/"))
            if ".." not in inside.parts:
                yield from (root / part for part in (inside, *inside.parents) if part != Path())


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: use the platform's name
    return platform.processor() or platform.machine()


def memory_mb() -> int | None:
    """Memory in MiB that this process may use: the machine's, or its container's limit if lower."""
    try:
        of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):
        return None
    return min([of_machine, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """Yield limits in MiB; a container without one says ``max``, or a number larger than any machine."""
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):
            yield int(path.read_text(encoding="ascii")) // 2**20
