"""Workers of a role, as many as its time lag asks for: measure, decide, start or stop.

::

    Elastic ──stdin pipe──> supervisor ──stdin pipe──> worker, worker, ...

The workers join the group of the role beside those that others have started. These count, but they
are never stopped. The group moves partitions cooperatively, and a removed worker ends its step,
commits it and leaves the group. When the autoscaler ends, in whatever way, so do its workers.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, get_args

import psutil
from msgspec import Struct, structs

from labkit.errors import LabkitError, UsageError
from labkit.ports.clock import SYSTEM, Clock
from labkit.run.autoscaler import Autoscaler, Bounds
from labkit.run.claim import BEAT_SECONDS, Claim
from labkit.run.positions import Positions
from labkit.run.registry import Alive, live_runs, runs_folder
from labkit.run.run import COLLECTION, SETTINGS_ID, Run
from labkit.run.starting import instructions, start_workers
from labkit.run.supervisor import Workers
from labkit.run.time_lag import TimeLag
from labkit.run.worker import Worker
from labkit.stack.processes import cpu_seconds

if TYPE_CHECKING:
    import pandas as pd

ScaledRole = Literal["handler", "projector"]
ROLES: tuple[ScaledRole, ...] = get_args(ScaledRole)
#: Seconds between two looks.
LOOK_SECONDS = 0.5
#: Topics are deleted before the database that says so.
DROP_SECONDS = 5.0


class Look(Struct, frozen=True):
    """One look: ``at`` in seconds of the monotonic clock of this host, ``lag`` in seconds.

    ``workers`` there were, and ``wanted`` there are from now on. ``cpu`` is the share of a core
    that each live worker of the role took since the last look, in the mean; NaN: there was none.
    """

    at: float
    lag: float
    workers: int
    wanted: int
    cpu: float


class Elastic:
    """The workers of one role of one service, between ``bounds``.

    Args:
        by: what the bounds are compared with: the time lag, or, to see why not, ``cpu``: the share
            of a core that a worker takes (bounds from 0 to 1).
        report: is given a line for each change.

    Raises ``UsageError`` for bounds or a role that cannot be, and if another autoscaler has it.
    """

    def __init__(
        self,
        run: Run,
        positions: Positions,
        role: str,
        service: str,
        bounds: Bounds,
        *,
        by: Literal["lag", "cpu"] = "lag",
        report: Callable[[str], None] = lambda _: None,
        clock: Clock = SYSTEM,
    ) -> None:
        if role not in ROLES:
            raise UsageError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        if service not in run.instances_of(role):
            known = ", ".join(run.instances_of(role)) or "none"
            raise UsageError(f"run {run.run!r} has no {role} of {service!r}: {known}")
        self._decide = Autoscaler(bounds, run.partitions)
        self.least, self.most = self._decide.least, self._decide.most
        if run.backend == "memory":
            raise UsageError("a run in memory has no worker processes; use backend='kafka'")
        run.check_importable()
        self.run, self.role, self.service, self.bounds = run, role, service, bounds
        self._positions, self._by, self._report, self._clock = positions, by, report, clock
        self._registry = runs_folder(run.name) / f"{run.run}.autoscaler-{role}-{service}.json"
        self._lag = TimeLag()
        self._spent: dict[int, float] = {}
        self._looked = math.nan
        self._beaten = -math.inf
        self._slots: list[int] = []
        self._next = self._first = 1_000 + secrets.randbelow(10**9)  # nobody else has these slots
        self._workers: Workers | None = None
        self._deaths = ""
        self._claim = Claim(run.store, run.run, role, service, clock)
        if (most := bounds.most) > self.most:
            report(
                f"at most {self.most} {role}s are started, not {most}: a topic of this run "
                f"has {run.partitions} partitions, and each belongs to one worker"
            )

    def step(self) -> Look | None:
        """One look, and what follows from it; ``None``: the run was dropped.

        Raises ``UsageError`` if another autoscaler has taken the role, ``StackError`` where a
        server or the supervisor is gone.
        """
        now = self._clock.seconds()
        if now - self._beaten >= BEAT_SECONDS:
            if not self._claim.beat():
                return None
            self._beaten = now
        try:
            lag = self._lag.look(now, self._positions.places(self.role, self.service))
        except LabkitError:
            if self._dropped():
                return None
            raise
        others, cpu = self._alive(now)
        workers = others + len(self._slots)
        signal = lag if self._by == "lag" else cpu
        wanted = self._decide.wanted(now, 0.0 if math.isnan(signal) else signal, workers)
        wanted = max(wanted, others)  # theirs are not ours to stop
        if wanted != workers:
            self._scale(wanted - others)
            self._report(f"lag {lag:.1f} s: {workers} -> {wanted} {self.role}s of {self.service}")
        elif self._workers is not None and (deaths := self._workers.deaths()) != self._deaths:
            self._deaths = deaths
            self._report(f"workers die as they start: {deaths}" if deaths else "its workers live")
        return Look(now, lag, workers, wanted, cpu)

    def _alive(self, now: float) -> tuple[int, float]:
        """How many workers of the role live here that are not ours, and the CPU share of each."""
        every = [w for w in live_runs(self.run.name).get(self.run.run, []) if self._is_of(w)]
        before, seconds = self._spent, now - self._looked
        self._spent, self._looked = {}, now
        for worker in every:
            with suppress(psutil.Error):
                self._spent[worker.pid] = cpu_seconds(psutil.Process(worker.pid))
        shares = [(spent - before[p]) / seconds for p, spent in self._spent.items() if p in before]
        others = sum(not self._first <= worker.slot < self._next for worker in every)
        return others, sum(shares) / len(shares) if shares else math.nan

    def _is_of(self, worker: Alive) -> bool:
        return (worker.role, worker.service) == (self.role, self.service)

    def _scale(self, own: int) -> None:
        """Have so many workers of our own: the newest leave first."""
        while len(self._slots) < own:
            self._slots.append(self._next)
            self._next += 1
        del self._slots[own:]
        workers = [Worker(self.role, self.service, slot) for slot in self._slots]
        if self._workers is None:
            self._workers = start_workers(self.run, workers, self._registry)
        else:
            self._workers.tell(instructions(self.run, workers, self._registry))

    def _dropped(self) -> bool:
        deadline = self._clock.seconds() + DROP_SECONDS
        while self.run.store.load(COLLECTION, [SETTINGS_ID]):
            if self._clock.seconds() > deadline:
                return False
            self._clock.sleep(LOOK_SECONDS / 2)
        return True

    def close(self) -> None:
        """Stop its workers in order, and let another autoscaler have the role."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.stop()
        self._claim.release()


class Autoscaling:
    """An autoscaler in a thread, with a connection of its own; ``looks`` is what it has seen."""

    def __init__(
        self, run: Run, role: str, service: str, bounds: Bounds, report: Callable[[str], None]
    ) -> None:
        self.looks: list[Look] = []
        self._report = report
        self._stop = threading.Event()
        bounds.check()
        own = {"client": run.settings.client}
        self._run = run
        if run.backend == "kafka":
            self._run = Run(run.name, run=run.run, services=(), start=False, settings=own)
        self._positions = Positions(self._run)
        try:
            self._elastic = Elastic(
                self._run, self._positions, role, service, bounds, report=report
            )
        except BaseException:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                if (look := self._elastic.step()) is None:
                    break
                self.looks.append(look)
                self._stop.wait(LOOK_SECONDS)
        except LabkitError as error:
            self._report(f"the autoscaler ends: {error.line}")
        finally:
            try:
                self._elastic.close()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._positions.close()
        if self._run.backend == "kafka":
            self._run.close()

    def history(self) -> pd.DataFrame:
        """One row a look: at (seconds since the first), lag (s), workers, wanted, cpu."""
        import pandas as pd

        looks = [structs.asdict(look) for look in self.looks]
        frame = pd.DataFrame(looks, columns=list(Look.__struct_fields__))
        return frame.assign(at=frame["at"] - frame["at"].min())

    def stop(self) -> None:
        """End it and its workers."""
        self._stop.set()
        self._thread.join()
