"""The supervisor: a process that keeps a run's workers alive until its standard input ends.

Its first line of input names the workers. A later line names them anew: those that are missing are
started, and those that are not named any more leave in order.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from labkit.errors import StackError, TimedOut
from labkit.ports.failpoints import Failpoint
from labkit.run.registry import Alive, Registry, read_registry, write_whole
from labkit.run.worker import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    STOP_SECONDS,
    YOUNG_SECONDS,
    Worker,
)
from labkit.stack.processes import born, last_line

CRASH_SECONDS = 45.0


class Instructions(Struct):
    """What the supervisor is told, as one line of JSON on its standard input.

    ``registry`` and ``logs`` (a file and a folder) are those of the first line.
    """

    registry: str
    logs: str
    run: str
    workers: list[Worker]
    commands: list[list[str]]


class _Child:
    """One worker and its lives."""

    def __init__(self, worker: Worker, command: list[str], log: Path) -> None:
        self.worker = worker
        self._command = command
        self._log = log
        self.restarts = -1
        self._pause = FIRST_PAUSE_SECONDS
        self._next = 0.0
        self._born = 0.0
        self._deadline = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def leave(self) -> None:
        """Break its life line: it ends its step and leaves its group."""
        self._deadline = time.monotonic() + STOP_SECONDS + 1
        if self.process is not None:
            _close(self.process)

    def gone(self) -> bool:
        """Whether it has left; it is killed where that takes too long."""
        if self.process is not None and self.process.poll() is None:
            if time.monotonic() < self._deadline:
                return False
            self.process.kill()
            self.process.wait()
        return True

    def tend(self) -> bool:
        """Start it if it is dead and its pause is over; whether there is a new life."""
        now = time.monotonic()
        if self.process is not None:
            if self.process.poll() is None:
                return False
            _close(self.process)
            self.process = None
            young = now - self._born < YOUNG_SECONDS
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS) if young else 0.0
            self._next = now + self._pause
            self._pause = self._pause or FIRST_PAUSE_SECONDS
        if now < self._next:
            return False
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self._born = now
        self.restarts += 1
        return True


def supervise() -> None:
    """The supervisor's main: it keeps the workers alive until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = msgspec.json.decode(sys.stdin.buffer.readline(), type=Instructions)
    told: queue.SimpleQueue[Instructions] = queue.SimpleQueue()
    told.put(first)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def watch() -> None:
        try:
            for line in sys.stdin.buffer:
                told.put(msgspec.json.decode(line, type=Instructions))
        finally:  # also where the one who writes has died within a line
            stop.set()

    threading.Thread(target=watch, daemon=True).start()
    registry, logs = Path(first.registry), Path(first.logs)
    children: dict[Worker, _Child] = {}
    leaving: list[_Child] = []
    try:
        while not stop.wait(0.05):
            before = set(children)
            while not told.empty():
                leaving += _follow(told.get(), children, logs)
            leaving = [child for child in leaving if not child.gone()]
            born = [child.tend() for child in children.values()]  # all of them, so no generator
            if any(born) or before - set(children):
                _register(registry, first.run, children.values())
    finally:
        leaving += children.values()
        for child in children.values():
            child.leave()
        while not all(child.gone() for child in leaving):
            time.sleep(0.02)
        registry.unlink(missing_ok=True)


def _follow(told: Instructions, children: dict[Worker, _Child], logs: Path) -> list[_Child]:
    """Make ``children`` those that are named, without starting them; returns those that leave."""
    named = dict(zip(told.workers, told.commands, strict=True))
    left = [children.pop(worker) for worker in set(children) - set(named)]
    for child in left:
        child.leave()
    for worker, command in named.items():
        if worker not in children:
            children[worker] = _Child(worker, command, logs / f"{told.run}-{worker.name}.log")
    return left


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _register(path: Path, run: str, children: Iterable[_Child]) -> None:
    workers = [
        Alive(c.worker.role, c.worker.service, c.worker.slot, c.process.pid, c.restarts)
        for c in children
        if c.process is not None
    ]
    state = Registry(run, os.getpid(), born(os.getpid()), workers)
    write_whole(path, msgspec.json.encode(state))


class Workers:
    """The handle on a supervisor and its workers."""

    def __init__(self, instructions: Instructions, environment: dict[str, str]) -> None:
        self._registry, self._logs = Path(instructions.registry), Path(instructions.logs)
        self._run = instructions.run
        self._registry.parent.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{self._run}-supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from labkit.run.supervisor import supervise; supervise()"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        self._log = Path(log.name)
        self.tell(instructions)

    def tell(self, instructions: Instructions) -> None:
        """Name the workers anew; raises ``StackError`` if the supervisor is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(instructions) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.check()
            raise

    def alive(self) -> list[Alive]:
        """The workers that live now."""
        self.check()
        found = read_registry(self._registry)
        return found.workers if found else []

    def deaths(self) -> str:
        """Of the workers that die as soon as they live, the last words of each."""
        return "; ".join(
            f"{name}: {last_line(self._logs / f'{self._run}-{name}.log')}"
            for alive in self.alive()
            if alive.restarts > 1
            for name in [Worker(alive.role, alive.service, alive.slot).name]
        )

    def check(self) -> None:
        """Raises ``StackError`` if the supervisor itself is gone."""
        if self._process.poll() is not None:
            raise StackError(
                f"the supervisor of the workers ended with code {self._process.returncode}; "
                f"see {self._log}"
            )

    def stop(self) -> None:
        """Break the life line and wait."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it was told last, and it was gone
            self._process.stdin.close()
        try:
            self._process.wait(2 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self._process.pid).children():
                child.kill()
            self._process.kill()
            self._process.wait()
            self._registry.unlink(missing_ok=True)


def crash_worker(command: list[str], environment: dict[str, str], logs: Path, at: Failpoint) -> int:
    """Run one worker that dies by SIGKILL at a failpoint; returns the pid that it had.

    Raises ``TimedOut`` if it does not come there.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (logs / "crash.log").open("ab") as log:
        mark = Path(folder) / "hit"
        armed = {"LABKIT_FAILPOINT": str(at), "LABKIT_FAILPOINT_MARK": str(mark)}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment | armed
        )
        try:
            process.wait(CRASH_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            _close(process)
        if not mark.exists():
            raise TimedOut(
                f"failpoint {at} was not reached within {CRASH_SECONDS:g} s (see {log.name}); "
                "is there something to do? lab.bus.send(...) sends a command"
            )
        return process.pid
