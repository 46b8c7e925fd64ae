"""The observer of a drain: progress, CPU time and memory, at a steady rate, from its own process.

*committed* is the committed offset of the handlers' group, *visible* the checkpoint of the view,
both summed over the partitions. Both count commands, since nothing else takes offsets on a commands
topic.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from msgspec import Struct

from labkit.experiments.meter import Meter
from labkit.experiments.processes import steadily
from labkit.lab import Lab

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
