"""Clients and workers of a tape on real servers: each client a thread, each worker a process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec import Struct

from labkit.experiments.verify.faulty_workers import FaultyWorker, FaultyWorkers
from labkit.experiments.verify.history import History
from labkit.lab import Lab
from labkit.ports.clock import SYSTEM
from labkit.ports.failpoints import Failpoint
from labkit.run.worker import Worker
from labkit.simulation.clients import KEEPER_SECONDS, Client, Keeper
from labkit.simulation.judging import running, waiting
from labkit.simulation.monitors import Monitors
from labkit.simulation.reading import Readers
from labkit.simulation.scenario import Scenario, planned, sizes
from labkit.simulation.tape import Tape
from labkit.simulation.workforce import workers

#: What a fault of a tape is on real servers; the other kinds have no signal.
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "leave": signal.SIGTERM}
#: Workers own all partitions after so long, and all come to rest.
READY_SECONDS, QUIET_SECONDS = 60.0, 120.0
#: Where all is quiet, a fault that has not struck yet is waited for so long.
FAULT_SECONDS = 5.0
LOOK_SECONDS = 0.1


class Fallen(Struct, frozen=True):
    """A fault as it struck a worker in the simulated run, after ``passes`` of its place."""

    kind: str
    worker: str
    role: str
    place: str
    passes: int
    told: str

    @property
    def service(self) -> str:
        return self.worker.removeprefix(f"{self.role}-").rpartition("-")[0]


class _Over(Exception):
    """The run is over; clients need not go on."""


class _RealTime:
    """What clients need of a world, where time goes by itself."""

    clock = SYSTEM

    def __init__(self) -> None:
        self.monitors = Monitors(lambda: 0)

    @property
    def time(self) -> int:
        return time.monotonic_ns()

    step = time

    def note(self, kind: str, text: str, about: Iterable[str] = (), other: str = "") -> None:
        """Nobody reads it."""


class _Shared(History):
    """Of several clients, each a thread; who made it hears even when the run is over."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.bus)
        self.over = False
        self.lock = threading.RLock()
        self._owner = threading.current_thread()

    def send(self, *args: Any, **how: Any) -> Any:
        with self.lock:
            return super().send(*args, **how)

    def send_by(self, *what: Any) -> Any:
        with self.lock:
            return super().send_by(*what)

    def acknowledge(self, timeout: float = 30.0) -> None:
        with self.lock:
            super().acknowledge(timeout)

    def hear(self, timeout: float = 0.0) -> int:
        if self.over and threading.current_thread() is not self._owner:
            raise _Over
        with self.lock:
            count = super().hear(min(timeout, 0.05))
        time.sleep(0.001 if timeout else 0.0)  # somebody else's turn
        return count


class _SharedReaders(Readers):
    """Of several clients, each a thread."""

    def __init__(self, lab: Lab, world: _RealTime, lock: threading.RLock) -> None:
        super().__init__(lab, world)
        self._lock = lock

    def read(self, *what: Any) -> None:
        with self._lock:
            super().read(*what)


class Played:
    """Clients and workers of one run."""

    def __init__(
        self, lab: Lab, scenario: Scenario, tape: Tape, faults: list[Fallen], marks: Path
    ) -> None:
        drawn = sizes(scenario, tape)
        plan = planned(scenario, lab, tape)
        self._newer = plan.newer
        world = _RealTime()
        self.history = _Shared(lab)
        self.history.listen(*lab.services)
        self.readers = _SharedReaders(lab, world, self.history.lock)
        self._clients = [
            Client(f"client-{n}", self.readers, self.history, plan.calls[n :: drawn.clients])
            for n in range(drawn.clients)
        ]
        self._keeper = Keeper(lab, self.history, world) if plan.poisoned else None
        self._lab = lab
        self._faults = faults
        self._workers = workers(lab, drawn)
        self.faulty = FaultyWorkers(lab, marks, [self._faulty(each) for each in self._workers])

    def _faulty(self, worker: Worker) -> FaultyWorker:
        """A worker that is there to the end, with the fault of its role, if there is one."""
        for number, fault in enumerate(self._faults):
            if (fault.role, fault.service) == (worker.role, worker.service):
                at, blow = Failpoint(fault.place), SIGNALS[fault.kind]
                return FaultyWorker(worker, 0.0, 2.0, blow, at, fault.passes, f"fault-{number}")
        return FaultyWorker(worker, 0.0, 2.0)

    def came_of(self, number: int) -> str:
        """A fault, and whether it struck."""
        did = "; ".join(self.struck(number)) or "it did NOT strike"
        return f"{self._faults[number].told}: {did}"

    def struck(self, number: int) -> list[str]:
        """The story of the worker that a fault struck, if it did."""
        alike = [each for each in self.faulty.extras if each.mark == f"fault-{number}"]
        return [line for each in alike if each.struck for line in each.story]

    def run(self) -> str:
        """Until all are served and come to rest; who is not, if that takes too long."""
        self._begin()
        with ThreadPoolExecutor(len(self._clients)) as pool:
            served = [pool.submit(client) for client in self._clients]
            try:
                deadline = time.monotonic() + QUIET_SECONDS
                while late := self._late():
                    if time.monotonic() > deadline:  # a process that does not end is C11's
                        return f"no liveness: {late}" if self._restless else ""
                    for future in served:
                        if future.done():
                            future.result()
                    self._look()
            finally:
                self.history.over = True
        return ""

    def _begin(self) -> None:
        """All workers are started, and each partition has its owners."""
        lab = self._lab
        if self._newer is not None:
            self._newer.put(lab)
        wanted = {
            f"{reader.name}:{partition}"
            for worker in self._workers
            for reader in lab.of.readers(worker.role, worker.service)
            for partition in range(lab.partitions)
        }
        deadline = time.monotonic() + READY_SECONDS
        while not wanted <= lab.positions.epochs().keys() and time.monotonic() < deadline:
            self._look()
        self._calm = self._kept = time.monotonic()

    def _look(self) -> None:
        self.faulty.tend(1.0)
        self._lab.check()
        time.sleep(LOOK_SECONDS)

    def _late(self) -> str:
        """Who is not done; a fault may still strike for a while."""
        now = time.monotonic()
        if self._keeper is not None and now - self._kept > KEEPER_SECONDS:
            self._kept = now
            with self.history.lock:
                self._keeper.release()
        paused = [each.worker.name for each in self.faulty.extras if each.paused]
        with self.history.lock:  # readers look at the same topics
            behind = waiting(self._lab, self._clients, self._keeper)
        self._restless = bool(behind)
        late = ", ".join(filter(None, [behind, *paused, *running(self._lab)]))
        if late:
            self._calm = now
        struck = {each.mark for each in self.faulty.extras if each.struck}
        if late or len(struck) == len(self._faults) or now - self._calm > FAULT_SECONDS:
            return late
        return "a fault that has not struck yet"
