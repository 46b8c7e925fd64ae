"""A supervisor is told anew which workers there are; its workers here do nothing. No servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from labkit.errors import StackError
from labkit.run.registry import Alive
from labkit.run.supervisor import Instructions, Workers
from labkit.run.worker import Worker
from tests.test_runtime import runs, until

#: It ends when its life line breaks, and says so.
WAIT = "import sys; print('up', flush=True); sys.stdin.read(); print('down')"


class Crew:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers = Workers(self.told(0), dict(os.environ))

    def told(self, *slots: int) -> Instructions:
        return Instructions(
            registry=str(self.folder / "r1.json"),
            logs=str(self.folder),
            run="r1",
            workers=[Worker("handler", "desk", slot) for slot in slots],
            commands=[[sys.executable, "-c", WAIT] for _ in slots],
        )

    def tell(self, *slots: int) -> None:
        self.workers.tell(self.told(*slots))

    def has(self, *slots: int) -> list[Alive]:
        """Wait until the registry shows these, alive."""
        found: list[Alive] = []

        def shown() -> bool:
            found[:] = self.workers.alive()
            return sorted(w.slot for w in found) == list(slots) and all(runs(w.pid) for w in found)

        until(f"workers {slots}", shown)
        return found

    def log(self, slot: int) -> str:
        return (self.folder / f"r1-handler-desk-{slot}.log").read_text()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path)
    try:
        yield made
    finally:
        made.workers.stop()


def test_workers_come_and_leave_and_the_others_go_on(crew: Crew) -> None:
    (first,) = crew.has(0)
    crew.tell(0, 1, 2)
    pids = {worker.slot: worker.pid for worker in crew.has(0, 1, 2)}
    assert pids[0] == first.pid, "it was not started again"
    until("it is up", lambda: "up" in crew.log(2))
    crew.tell(0, 1)
    crew.has(0, 1)
    until("it has left", lambda: not runs(pids[2]))
    assert "down" in crew.log(2), "in order, and not killed"
    os.kill(pids[1], signal.SIGKILL)
    until("a new life", lambda: {w.slot: w.restarts for w in crew.workers.alive()} == {0: 0, 1: 1})
    crew.tell()
    crew.has()
    until("all have left", lambda: not runs(first.pid))


def test_a_supervisor_that_is_gone_is_told_of(crew: Crew) -> None:
    (worker,) = crew.has(0)
    psutil.Process(crew.workers._process.pid).kill()
    crew.workers._process.wait()
    with pytest.raises(StackError, match="the supervisor of the workers ended with code -9"):
        crew.tell(0, 1)
    until("its life line is broken", lambda: not runs(worker.pid))
