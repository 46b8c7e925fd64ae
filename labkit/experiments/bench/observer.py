"""The observer of a drain: progress, CPU time and memory, at a steady rate, from its own process.

*committed* is the committed offset of the handlers' group, *visible* the checkpoint of the view,
both summed over the partitions. Both count commands, since nothing else takes offsets on a commands
topic.
"""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from labkit import stack
from labkit.experiments.processes import steadily
from labkit.lab import Lab
from labkit.run.registry import read_registry

LOOKS_PER_SECOND = 20.0


class Observation(Struct, frozen=True):
    """One observation; ``at`` in monotonic ns.

    ``cpu`` holds the CPU seconds used so far, and ``memory`` the resident bytes, both by role and
    summed over its processes.
    """

    at: int
    committed: int
    visible: int
    cpu: dict[str, float]
    memory: dict[str, int] = {}


def observe(pipe: Connection, settings: dict[str, Any]) -> None:
    """Send one ``Look`` after another until the other end is closed.

    It observes the first service of the run.
    """
    with Lab(**settings, start=False) as lab:
        meter = Meter(lab)
        service = lab.first
        topic, group = lab.topic_name(f"{service}.commands"), lab.of.group("handler", service)

        def look(_: int) -> None:
            committed = lab.log_broker.committed(topic, group)
            reached = lab.queries.reached(service)
            at = time.monotonic_ns()
            visible = sum(offset + 1 for offset in reached.values())
            cpu, memory = meter.read()
            seen = Observation(at, sum(committed.values()), visible, cpu, memory)
            pipe.send_bytes(msgspec.json.encode(seen))

        look(0)
        steadily(pipe, LOOKS_PER_SECOND, look)


class Meter:
    """CPU time and memory of workers and servers by role, where they are processes of this host."""

    def __init__(self, lab: Lab) -> None:
        self._registry = lab.of.registry()
        self._seconds: dict[tuple[str, int], float] = {}
        servers = stack.status(lab.name)["servers"]
        self._servers = [(s["name"], s["pid"]) for s in servers if s.get("pid")]

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """CPU seconds so far and resident bytes now, by role.

        A process that has died keeps the CPU seconds of its last reading.
        """
        registry = read_registry(self._registry)
        workers = [(w.role, w.pid) for w in registry.workers] if registry else []
        memory: dict[str, int] = {}
        for role, pid in [*workers, *self._servers]:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                times = process.cpu_times()
                self._seconds[role, pid] = times.user + times.system
                memory[role] = memory.get(role, 0) + process.memory_info().rss
        seconds: dict[str, float] = {}
        for (role, _), spent in self._seconds.items():
            seconds[role] = seconds.get(role, 0.0) + spent
        return seconds, memory
