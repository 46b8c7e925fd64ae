"""The faults of ``labkit verify``: workers that join, die, pause and leave while commands flow.

The steady workers are those of ``Lab.start``. A :class:`FaultyWorker` is an additional process with
a fault armed at a failpoint, so that the fault strikes between two effects.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from labkit.lab import Lab
from labkit.ports.failpoints import Failpoint
from labkit.run.worker import STOP_SECONDS, Worker

#: A paused worker is resumed when its partitions have gone to others, or after this time.
PAUSED_SECONDS = 30.0


class FaultyWorker:
    """An additional worker: it joins at a share of the run, its fault strikes, it recovers, leaves.

    ``blow`` is SIGKILL or SIGTERM (the worker is started again, as by its supervisor), SIGSTOP (it
    is resumed when its session has expired and others own its partitions) or ``None``. Workers with
    the same ``mark`` share one fault: it strikes the first of them that comes there.
    """

    def __init__(
        self,
        worker: Worker,
        joins: float,
        leaves: float,
        blow: signal.Signals | None = None,
        at: Failpoint | None = None,
        passes: int = 3,
        mark: str = "",
    ) -> None:
        self.worker = worker
        self.mark = mark or worker.name
        self.story: list[str] = []
        self._joins, self._leaves = joins, leaves
        self._blow, self._at, self._passes = blow, at, passes
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped: tuple[float, int] | None = None
        self.struck = False

    def tend(self, lab: Lab, share: float, folder: Path) -> None:
        """Take the step that is due at this share of the run (0 to 1)."""
        if self._process is None:
            if not self.story and share >= self._joins:
                self._start(lab, folder, armed=True)
            return
        if self._process.poll() is not None:
            if self._fell(folder):
                self.struck = True
                did = "killed" if self._blow is signal.SIGKILL else "told to leave"
                self.story.append(f"pid {self._process.pid} was {did} at {self._at}")
            else:
                self.story.append(f"pid {self._process.pid} ended with {self._process.returncode}")
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._start(lab, folder, armed=False)
        elif self._stopped is None and self._blow is signal.SIGSTOP and self._sleeps():
            self.struck = True
            self._stopped = time.monotonic(), self._claims(lab)
            self.story.append(f"pid {self._process.pid} was paused at {self._at}")
        elif self._stopped is not None and self._stopped[0] and self._moved_on(lab):
            self._process.send_signal(signal.SIGCONT)
            self.story.append(f"pid {self._process.pid} was resumed")
            self._stopped = 0.0, 0
        elif share >= self._leaves and (self.struck or self._blow is None):
            self._stop()

    @property
    def fault(self) -> str:
        return f"{self._blow.name} at {self._at}" if self._blow else "joins and leaves"

    @property
    def over(self) -> bool:
        """Whether its fault has struck, and it runs again."""
        return bool(self.story) and (self._blow is None or (self.struck and not self.paused))

    @property
    def paused(self) -> bool:
        return self._stopped is not None and self._stopped[0] > 0

    @property
    def done(self) -> bool:
        return self._process is None and bool(self.story)

    def stop(self) -> None:
        """End it, paused or not."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._stop()

    def _start(self, lab: Lab, folder: Path, armed: bool) -> None:
        environment = lab.of.environment()
        if armed and self._blow is not None and self._at is not None:
            environment |= {
                "LABKIT_FAILPOINT": str(self._at),
                "LABKIT_FAILPOINT_MARK": str(self._mark(folder)),
                "LABKIT_FAILPOINT_PASSES": str(self._passes),
                "LABKIT_FAILPOINT_SIGNAL": self._blow.name,
            }
        lab.of.logs().mkdir(parents=True, exist_ok=True)
        with (lab.of.logs() / f"{lab.run}-{self.worker.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                lab.of.worker_command(self.worker),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.story.append(f"pid {self._process.pid} joined as {self.worker.name}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.story.append(f"pid {process.pid} left")

    def _mark(self, folder: Path) -> Path:
        return folder / f"{self.mark}.hit"

    def _fell(self, folder: Path) -> bool:
        """Whether its fault has ended the process."""
        assert self._process is not None
        ends = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}
        fatal = self._blow in ends and self._process.returncode == ends[self._blow]
        return fatal and not self.struck and self._mark(folder).exists()

    def _sleeps(self) -> bool:
        assert self._process is not None
        try:
            return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _claims(self, lab: Lab) -> int:
        """The sum of the epochs, which rises when partitions move."""
        readers = lab.of.readers(self.worker.role, self.worker.service)
        names = {reader.name for reader in readers}
        return sum(c.epoch for c in lab.positions.checkpoints() if c.id.rpartition(":")[0] in names)

    def _moved_on(self, lab: Lab) -> bool:
        assert self._stopped is not None
        since, claims = self._stopped
        paused = time.monotonic() - since
        # Others own its partitions and have had time to handle the commands that it holds.
        return (self._claims(lab) > claims and paused > 10.0) or paused > PAUSED_SECONDS


class FaultyWorkers:
    """The faulty workers of a run, and the folder of their marks."""

    def __init__(self, lab: Lab, folder: Path, extras: list[FaultyWorker]) -> None:
        self._lab, self._folder, self.extras = lab, folder, extras

    def tend(self, share: float) -> None:
        for extra in self.extras:
            extra.tend(self._lab, share, self._folder)

    @property
    def struck(self) -> bool:
        """Whether every fault has struck, and paused workers run again."""
        return all(extra.over for extra in self.extras)

    @property
    def done(self) -> bool:
        """Whether every worker has joined and left."""
        return all(extra.done for extra in self.extras)

    def stop(self) -> None:
        for extra in self.extras:
            extra.stop()

    def report(self) -> list[dict[str, Any]]:
        return [
            {"worker": e.worker.name, "fault": e.fault, "struck": e.over, "story": e.story}
            for e in self.extras
        ]


def faulty_workers(lab: Lab) -> list[FaultyWorker]:
    """One worker for each fault, spread over the services and processes of a run."""
    kill, pause = signal.SIGKILL, signal.SIGSTOP
    handlers = lab.instances_of("handler")
    first, middle, last = handlers[0], handlers[len(handlers) // 2], handlers[-1]
    found = [
        FaultyWorker(Worker("handler", first, 1), 0.10, 0.80, kill, Failpoint.HANDLER_OFFSETS),
        FaultyWorker(Worker("handler", last, 2), 0.15, 0.95, pause, Failpoint.HANDLER_DECIDED),
        FaultyWorker(Worker("handler", middle, 3), 0.30, 0.60),
    ]
    for process in lab.instances_of("process")[-1:]:
        worker = Worker("process", process, 1)
        found.append(FaultyWorker(worker, 0.20, 0.75, kill, Failpoint.PROCESS_SENT))
    if shown := lab.instances_of("projector"):
        worker = Worker("projector", shown[len(shown) // 2], 1)
        found.append(FaultyWorker(worker, 0.25, 0.70, kill, Failpoint.PROJECTOR_APPLIED))
    return found
