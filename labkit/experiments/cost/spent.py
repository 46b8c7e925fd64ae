"""CPU time of all that an arm needs: clients, workers, feeder, and the servers on this host."""

from __future__ import annotations

from contextlib import suppress

import psutil

from labkit import stack
from labkit.lab import Lab
from labkit.stack.processes import cpu_seconds


def spent(lab: Lab) -> float:
    """Seconds so far, of the processes that live now; this process itself only waits."""
    pids = {child.pid for child in psutil.Process().children(recursive=True)}
    pids |= {s["pid"] for s in stack.status(lab.name)["servers"] if s.get("pid")}
    seconds = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            seconds += cpu_seconds(psutil.Process(pid))
    return seconds
