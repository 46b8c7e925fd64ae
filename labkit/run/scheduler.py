"""The scheduler of a run: jobs that are done once at their instants, however many schedulers run.

::

    collection jobs      a checkpoint a job: ``position`` is the instant that was done last
    collection reports   {_id: "JOB INSTANT", job, due, at, ...}: what each time has come to

What a job writes, its report and its checkpoint are one transaction, and the checkpoint moves only
from where it was read. So of two schedulers one is refused as a whole, and one that dies at
whatever place has done all or nothing. Instants that passed while no scheduler ran are made up for
by one run, for the latest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from msgspec import Struct, structs

from labkit.errors import Conflict, Duplicate, Fenced, LabkitError
from labkit.log.crash_only import CrashOnly
from labkit.ports.clock import Clock
from labkit.ports.store import Checkpoint, Document, Store, Writes
from labkit.run.cron import Cron

JOBS, REPORTS = "jobs", "reports"


class Job(Struct, frozen=True):
    """``do`` is told the instant (Unix ms); it gives the fields of the report, and further writes.

    Several schedulers may call it for one instant; what it gives counts once.
    """

    name: str
    cron: Cron
    do: Callable[[int], tuple[Document, Writes]]


class Scheduler(CrashOnly):
    """Does the jobs that are due; ``close`` is called at its end."""

    def __init__(
        self, jobs: Sequence[Job], store: Store, clock: Clock, close: Callable[[], None]
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._clock = clock
        self.close = close
        #: When each job is to be looked at again.
        self._waits: dict[str, int] = {}
        store.index(JOBS, [("_id", 1)])
        store.index(REPORTS, [("job", 1), ("due", -1)])

    def join(self, partitions: int) -> None:
        """There is no group to join."""

    def step(self, timeout: float = 0.5) -> int:
        """Do what is due, or let ``timeout`` seconds pass; how many jobs were done here.

        Raises the last error of a job, when all have been tried.
        """
        with self.unbroken():
            now = self._clock.wall()
            done, failed = 0, None
            for job in self._jobs:
                if self._waits.get(job.name, 0) <= now:
                    try:
                        done += self._do(job, now)
                    except LabkitError as error:  # it must not keep the other jobs from their work
                        failed = error
            if failed is not None:
                raise failed
            if not done:
                self._clock.sleep(timeout)
            return done

    def _do(self, job: Job, now: int) -> bool:
        try:
            at = self._reached(job, now)
            due = job.cron.latest(at.position, now)
            if due is not None:
                fields, writes = job.do(due)
                writes.inserts[REPORTS] = [self._report(job, due) | fields]
                done = structs.replace(at, position=due)
                self._store.advance(JOBS, [(at, done)], writes)
        except (Fenced, Duplicate, Conflict):
            return False  # another scheduler was first: the next step sees how far it has come
        self._waits[job.name] = job.cron.next(at.position if due is None else due)
        return due is not None

    def _reached(self, job: Job, now: int) -> Checkpoint:
        """The checkpoint of a job; its instants begin with the first scheduler of the run."""
        known = {at.id: at for at in self._store.checkpoints(JOBS)}
        if job.name in known and known[job.name].position:
            return known[job.name]
        at = self._store.claim(JOBS, job.name)
        begun = structs.replace(at, position=now)
        self._store.advance(JOBS, [(at, begun)], Writes())
        return begun

    def _report(self, job: Job, due: int) -> Document:
        instant = f"{datetime.fromtimestamp(due / 1e3, UTC):%Y-%m-%dT%H:%M}Z"
        return {
            "_id": f"{job.name} {instant}",
            "job": job.name,
            "due": instant,
            "at": self._clock.wall(),
        }
