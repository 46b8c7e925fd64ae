"""The same story on real Kafka and MongoDB: real workers, killed and paused where the tape says so.

The clients send the same commands under the same ids, and again where they are not answered. A
fault at a failpoint becomes a signal there (``verify/faulty_workers.py``); it strikes the first
worker of its role and service that has passed the place so often. What no signal can do is named.
Then all must come to rest, and the same checkers judge.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from labkit import stack
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.faulty_workers import FaultyWorker, FaultyWorkers
from labkit.experiments.verify.history import History
from labkit.experiments.verify.planted_bugs import SIMULATED
from labkit.experiments.verify.planting import planted as planted_in_workers
from labkit.experiments.verify.verdict import red, to_report
from labkit.lab import Lab
from labkit.ports.clock import SYSTEM
from labkit.ports.failpoints import ALL, Failpoint
from labkit.run.worker import Worker
from labkit.simulation.explore import quiet
from labkit.simulation.ladder import fitting, in_worker, planted
from labkit.simulation.monitors import Monitors
from labkit.simulation.scenario import (
    KEEPER_SECONDS,
    Client,
    Keeper,
    Poison,
    Scenario,
    calls,
    sizes,
)
from labkit.simulation.story import SavedTape
from labkit.simulation.tape import SCHEDULE, Tape
from labkit.simulation.trial import Outcome, Trial, judge, waiting, workers
from labkit.simulation.world import World

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


class OnReal(Struct):
    """What the checkers say of both runs.

    ``faults`` are those of the tape that had a signal, each with what came of it; ``left_out`` is
    what real servers cannot be made to do.
    """

    plant: str
    simulated: list[str]
    red: list[str]
    verdicts: dict[str, Any]
    faults: list[str]
    left_out: list[str]
    why: str = ""
    run: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing went wrong on real servers."""
        return not self.red

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        return {**to_builtins(self), "ok": self.good}

    @property
    def text(self) -> str:
        """The verdicts beside each other, and what made them."""
        lines = [
            f"simulated: {_listed(self.simulated)}",
            f"on real Kafka and MongoDB: {_listed(self.red)}",
            *self.faults,
            *(f"not on real servers: {what}" for what in self.left_out),
        ]
        for name in self.red:
            found = self.verdicts.get(name, {}).get("violations") or [self.why]
            lines += [f"{name}: {line}" for line in found[:3]]
        return "\n".join(lines)


def on_real(
    scenario: Scenario,
    tape: SavedTape,
    plant: str | None = None,
    *,
    lab: str = "lab",
    client: str = "kafka-python",
    report: Any = lambda line: None,
) -> OnReal:
    """Play a tape in the simulator and on the servers ``lab``, which are started if not up.

    Raises ``UsageError`` for a bug that only a twin can have, ``StackError`` without servers.
    """
    if plant:
        in_worker(plant)
    scenario = fitting(scenario, plant)
    outcome, fallen = _simulated(scenario, tape, plant)
    began = time.monotonic()
    faults, left_out = _sorted(fallen)
    if turns := sum(value > 0 for value in outcome.tape.values[SCHEDULE]):
        left_out.append(f"{turns} decisions about who takes a turn")
    bug = f"{SIMULATED}{plant}" if plant else None
    settings = {
        "services": scenario.services,
        "processes": scenario.processes,
        "partitions": sizes(scenario, _tape(tape)).partitions,
        "delivery": scenario.delivery,
        "write_concern": scenario.write_concern,
        "client": client,
    }
    with (
        stack.borrowed(lab, report),
        planted_in_workers(bug) as marks,
        scratch_run(lab, **settings) as real,
    ):
        real.of.check_importable()
        report(f"run {real.run}: the same commands and faults")
        played = _Played(real, scenario, tape, faults, marks)
        try:
            why = played.run()
        finally:
            played.faulty.stop()
        verdicts = {} if why else judge(real, played.history)
        return OnReal(
            plant or "",
            outcome.red,
            ["liveness"] if why else red(verdicts),
            to_report(verdicts),
            [played.came_of(number) for number in range(len(faults))],
            left_out,
            why,
            real.run,
            round(time.monotonic() - began, 1),
        )


def _tape(tape: SavedTape) -> Tape:
    return Tape(tape.seed, recorded=tape.values)


# --- what the simulated run has to say


class _Counting(World):
    """Notes which faults strike, and how often their life has passed the place before."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.fallen: list[tuple[str, str, str, int, str]] = []
        self._passed: Counter[tuple[int, str]] = Counter()

    def place(self, name: str) -> None:
        if (life := self.current) is not None:
            self._passed[id(life), name] += 1
        super().place(name)

    def note(self, kind: str, text: str, about: Iterable[str] = (), other: str = "") -> None:
        super().note(kind, text, about, other)
        if kind == "fault" and (life := self.current) is not None:
            passes = self._passed[id(life), other] - 1
            told = f"step {self.step}: {life.name} {text}"
            self.fallen.append((life.name, life.role, other, passes, told))


def _simulated(
    scenario: Scenario, saved: SavedTape, plant: str | None
) -> tuple[Outcome, list[Fallen]]:
    tape = _tape(saved)
    world = _Counting(tape)
    with quiet(), planted(plant):
        outcome = Trial(scenario, tape, recording=True, world=world).run()
    kinds = (fault.kind for fault in outcome.struck)
    return outcome, [Fallen(k, *f) for k, f in zip(kinds, world.fallen, strict=True)]


def _sorted(fallen: Sequence[Fallen]) -> tuple[list[Fallen], list[str]]:
    """The faults that have a signal, one for each role of a service, and the others in words."""
    found: dict[tuple[str, str], Fallen] = {}
    left_out = []
    for each in fallen:
        if each.kind not in SIGNALS or each.place not in ALL:
            left_out.append(each.told)
        elif (each.role, each.service) in found:
            left_out.append(f"{each.told} (a second fault of a {each.role} of {each.service})")
        else:
            found[each.role, each.service] = each
    return list(found.values()), left_out


# --- the run on real servers


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

    def note(self, kind: str, text: str, about: Iterable[str] = (), other: str = "") -> None:
        """Nobody reads it."""


class _Shared(History):
    """Of several clients, each a thread; who made it hears even when the run is over."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.bus)
        self.over = False
        self._lock = threading.RLock()
        self._owner = threading.current_thread()

    def send(self, *args: Any, **how: Any) -> Any:
        with self._lock:
            return super().send(*args, **how)

    def acknowledge(self, timeout: float = 30.0) -> None:
        with self._lock:
            super().acknowledge(timeout)

    def hear(self, timeout: float = 0.0) -> int:
        if self.over and threading.current_thread() is not self._owner:
            raise _Over
        with self._lock:
            count = super().hear(min(timeout, 0.05))
        time.sleep(0.001 if timeout else 0.0)  # somebody else's turn
        return count


class _Played:
    """Clients and workers of one run."""

    def __init__(
        self, lab: Lab, scenario: Scenario, saved: SavedTape, faults: list[Fallen], marks: Path
    ) -> None:
        tape = _tape(saved)
        drawn = sizes(scenario, tape)
        every = calls(scenario, lab, tape)
        world = _RealTime()
        self.history = _Shared(lab)
        self.history.listen(*lab.services)
        self._clients = [
            Client(lab, self.history, world, every[number :: drawn.clients])
            for number in range(drawn.clients)
        ]
        poisoned = any(isinstance(call, Poison) for call in every)
        self._keeper = Keeper(lab, self.history, world) if poisoned else None
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
        alike = [each for each in self.faulty.extras if each.mark == f"fault-{number}"]
        struck = [line for each in alike if each.struck for line in each.story]
        did = "; ".join(struck) or "it did NOT strike"
        return f"{self._faults[number].told}: {did}"

    def run(self) -> str:
        """Until all are served and come to rest; who is not, if that takes too long."""
        self._begin()
        with ThreadPoolExecutor(len(self._clients)) as pool:
            served = [pool.submit(client) for client in self._clients]
            try:
                deadline = time.monotonic() + QUIET_SECONDS
                while late := self._late():
                    if time.monotonic() > deadline:
                        return f"no liveness: {late}"
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
            self._keeper.release()
        paused = [each.worker.name for each in self.faulty.extras if each.paused]
        late = ", ".join(filter(None, [waiting(self._lab, self._clients, self._keeper), *paused]))
        if late:
            self._calm = now
        struck = {each.mark for each in self.faulty.extras if each.struck}
        if late or len(struck) == len(self._faults) or now - self._calm > FAULT_SECONDS:
            return late
        return "a fault that has not struck yet"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} red" if names else "good"
