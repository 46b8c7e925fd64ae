"""What processes may use: the machine's memory and cores, or what a container is given of them.

A container sees the whole machine in ``/proc``. Its limits are in its control groups: version 2
has ``memory.max`` and ``cpu.max``, version 1 ``memory.limit_in_bytes`` and ``cpu.cfs_quota_us``
(https://docs.kernel.org/admin-guide/cgroup-v2.html).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def memory() -> int:
    """Bytes that all processes here may have together."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory())])


def free_memory() -> int:
    """Bytes that are free now, below the limit."""
    left = (max(0, limit - used) for limit, used in _memory())
    return min([psutil.virtual_memory().available, *left])


def cores() -> float:
    """Cores that all processes here may use together; a container may have a part of one."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
    found = found or float(os.cpu_count() or 1)
    for quota, *period in _read("cpu", ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        if quota and any(period):
            found = min(found, quota / period[0])
    return found


def open_files(process: psutil.Process) -> tuple[int, int]:
    """How many files a process has open, and how many it may open; 0: no limit is known."""
    if not hasattr(process, "rlimit"):  # Linux and FreeBSD have it
        return 0, 0
    soft = process.rlimit(psutil.RLIMIT_NOFILE)[0]
    return process.num_fds(), max(0, soft)


def _memory() -> Iterator[tuple[int, int]]:
    """Limit and use of each group that has a limit."""
    old = ["memory.limit_in_bytes", "memory.usage_in_bytes"]
    for limit, *used in _read("memory", ["memory.max", "memory.current"], old):
        if limit:
            yield limit, sum(used)


def _read(controller: str, unified: list[str], old: list[str]) -> Iterator[list[int]]:
    """The numbers in the files of our groups and of those above them, version 2 or 1."""
    for line in _lines(SELF):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = CGROUPS, unified
        elif controller in controllers.split(","):
            base, names = CGROUPS / controller, old
        else:
            continue
        # Inside a container the path may be the host's: then the group is the root that we see.
        inner = Path(path.lstrip("/"))
        for group in [inner, *inner.parents]:
            texts = [" ".join(_lines(base / group / name)) for name in names]
            if texts[0]:
                yield [_number(word) for text in texts for word in text.split()]


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().split("\n")[:-1]
    return []


def _number(text: str) -> int:
    """A limit; 0 for ``max``, for -1 and for what is no number: there is none."""
    return int(text) if text.isdecimal() else 0
