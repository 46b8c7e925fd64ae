"""What a container may use, from control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from labkit.experiments.results import machine
from labkit.stack import limits

GB = 1 << 30
HOST = psutil.virtual_memory().total
NO_LIMIT = "9223372036854771712"  # what version 1 says of none

GROUPS: dict[str, tuple[str, dict[str, str], int, float | None]] = {
    "no control groups": ("", {}, HOST, None),
    "version 2": (
        "0::/",
        {"memory.max": str(GB), "cpu.max": "50000 100000", "memory.current": str(GB - 1000)},
        GB,
        0.5,
    ),
    "version 2, nothing said": ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, HOST, None),
    "version 2, a group above says less": (
        "0::/pod/one",
        {"pod/memory.max": str(GB), "pod/one/memory.max": str(2 * GB), "pod/one/cpu.max": "max 1"},
        GB,
        None,
    ),
    "version 2, the path is the host's": ("0::/kube/x/y", {"memory.max": str(GB)}, GB, None),
    "version 1": (
        "4:memory:/a\n2:cpu,cpuacct:/a",
        {
            "memory/a/memory.limit_in_bytes": str(GB),
            "memory/a/memory.usage_in_bytes": str(GB - 1000),
            "cpu/a/cpu.cfs_quota_us": "25000",
            "cpu/a/cpu.cfs_period_us": "100000",
        },
        GB,
        0.25,
    ),
    "version 1, nothing said": (
        "4:memory:/\n2:cpu:/",
        {
            "memory/memory.limit_in_bytes": NO_LIMIT,
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        HOST,
        None,
    ),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_the_smaller_of_host_and_limit(
    groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, files, memory, cores = GROUPS[groups]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "self").write_text(own + "\n" if own else "")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "SELF", tmp_path / "self")
    assert limits.memory() == memory
    assert machine() == {"cores": limits.cores(), "memory_bytes": memory}
    if cores is not None:
        assert limits.cores() == cores
    else:
        assert limits.cores() >= 1
    if any("current" in name or "usage" in name for name in files):
        assert limits.free_memory() == 1000


def test_what_is_used_counts_where_there_is_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The use of a group without one holds the page cache of the whole machine."""
    (tmp_path / "self").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{HOST}\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "SELF", tmp_path / "self")
    assert limits.free_memory() > 0
