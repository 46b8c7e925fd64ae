"""CPU time and memory of a run's processes: its workers, its servers, and those that measure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from labkit import stack
from labkit.experiments.intervals import quotient
from labkit.lab import Lab
from labkit.run.registry import read_registry
from labkit.stack import limits
from labkit.stack.processes import cpu_seconds


class Meter:
    """CPU time and memory by role, where they are processes of this host.

    The roles are those of the workers, the names of the servers, and ``others``: a pid for each.
    """

    def __init__(self, lab: Lab, others: Mapping[str, int] | None = None) -> None:
        self._registry = lab.of.registry()
        self._seconds: dict[tuple[str, int], float] = {}
        servers = stack.status(lab.name)["servers"]
        self.servers = {s["name"]: s["pid"] for s in servers if s.get("pid")}
        self._others = [*self.servers.items(), *(others or {}).items()]

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """CPU seconds so far and resident bytes now, by role.

        A process that has died keeps the CPU seconds of its last reading.
        """
        registry = read_registry(self._registry)
        workers = [(w.role, w.pid) for w in registry.workers] if registry else []
        memory: dict[str, int] = {}
        for role, pid in [*workers, *self._others]:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                self._seconds[role, pid] = cpu_seconds(process)
                memory[role] = memory.get(role, 0) + process.memory_info().rss
        seconds: dict[str, float] = {}
        for (role, _), spent in self._seconds.items():
            seconds[role] = seconds.get(role, 0.0) + spent
        return seconds, memory


def spent(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float, commands: int
) -> dict[str, Any]:
    """The CPU time between two readings ``seconds`` apart, in which ``commands`` were sent.

    ``machine_share`` of a role is its CPU seconds divided by those of all cores; the rest is what
    other processes took, and what nobody used.
    """
    cores = limits.cores()
    used = {role: at - before.get(role, 0.0) for role, at in sorted(after.items())}
    return {
        "cores": cores,
        "seconds": round(seconds, 3),
        "machine_share": {r: round(quotient(s, seconds * cores), 4) for r, s in used.items()},
        "us_per_command": {r: round(quotient(s * 1e6, commands), 1) for r, s in used.items()},
    }
