"""Parts that are stepped by hand, in this process, each owning all partitions."""

from __future__ import annotations

import os
import time
from typing import Any

from msgspec import Struct

from labkit.errors import TimedOut, UsageError
from labkit.ports.failpoints import ALL, Crash, Failpoint, armed
from labkit.run.run import Role
from labkit.run.supervisor import crash_worker
from labkit.run.wiring import Parts
from labkit.run.worker import Worker

#: A member that does not poll for a minute is put out of its group (the adapters' poll interval is
#: 60 s), and its next step would only rejoin. So a part that lay idle gets a new life instead.
IDLE_SECONDS = 40.0


class Crashed(Struct, frozen=True):
    """How a part died: ``signal`` is 9 for a process, 0 inside one process."""

    role: str
    at: str
    pid: int
    signal: int


class ByHand:
    """The parts of one run that live in this process, by role and service."""

    def __init__(self, parts: Parts) -> None:
        self._make = parts.make
        self._run = parts.run
        self._parts: dict[tuple[str, str], Any] = {}
        self._touched: dict[tuple[str, str], float] = {}

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._parts

    def get(self, role: Role, service: str) -> Any:
        """The part; a new one if the last has failed, or lay idle for too long."""
        key = (role, service)
        if (old := self._parts.get(key)) is not None:
            idle = time.monotonic() - self._touched[key]
            if old.broken or (self._run.backend == "kafka" and idle > IDLE_SECONDS):
                self.forget(role, service)
        if key not in self._parts:
            part = self._make(Worker(role, service, 0))
            try:
                part.join(self._run.partitions)
            except BaseException:
                part.close()
                raise
            self._parts[key] = part
        self._touched[key] = time.monotonic()
        return self._parts[key]

    def forget(self, role: str, service: str) -> None:
        """Close a part; the next step is its next life."""
        if (part := self._parts.pop((role, service), None)) is not None:
            part.close()

    def crash(self, role: Role, at: Failpoint, service: str) -> Crashed:
        """Let a part die at a failpoint: a process of its own, killed by SIGKILL.

        In memory the part is dropped at the failpoint. Raises ``TimedOut`` if the failpoint was not
        reached.
        """
        if at not in ALL:
            raise UsageError(f"failpoint must be one of {', '.join(ALL)}, got {at!r}")
        self.forget(role, service)
        worker = Worker(role, service, 0)
        if self._run.backend == "memory":
            return self._crash_in_memory(worker, at)
        self._run.check_importable()
        command, environment = self._run.worker_command(worker), self._run.environment()
        return Crashed(role, at, crash_worker(command, environment, self._run.logs(), at), 9)

    def _crash_in_memory(self, worker: Worker, at: Failpoint) -> Crashed:
        part = self._make(worker)
        try:
            with armed(at):
                for _ in range(3):
                    part.step(0)
                getattr(part, "flush", lambda: None)()
        except Crash:
            return Crashed(worker.role, at, os.getpid(), 0)
        finally:
            part.close()
        raise TimedOut(
            f"failpoint {at} was not reached by the {worker.role}: it had nothing to do; "
            "lab.bus.send(...) gives it something"
        )

    def close(self) -> None:
        """Close all parts."""
        parts, self._parts = self._parts, {}
        for part in parts.values():
            part.close()
