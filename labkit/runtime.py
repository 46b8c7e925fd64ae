"""Workers as processes, and the supervisor that keeps them alive.

::

    Lab ──stdin pipe──> supervisor ──stdin pipe──> worker, worker, ...

The pipes are life lines: whoever loses the other end stops. So nothing is left behind even when a
notebook's kernel or the supervisor itself is killed. A worker that dies is started again; it has
one way in, whatever happened: rejoin and replay.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
import psutil
import structlog
from msgspec import Struct

from labkit.errors import LabkitError, StackError, TimedOut
from labkit.failpoints import Failpoint

#: A worker that dies young waits before its next life, a little longer each time.
YOUNG_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 4.0
STOP_SECONDS = 5.0
CRASH_SECONDS = 45.0
#: In scheduled mode: kafka-python gets nowhere in a poll without any time.
POLL_SECONDS = 0.1


class Steppable(Protocol):
    """A moving part: one batch a step."""

    def step(self, timeout: float = 0.5) -> object:
        """Poll a batch, work, commit once."""

    def close(self) -> None:
        """Leave, bounded in time."""


class Worker(Struct, frozen=True):
    """Who does what: ``role`` is handler or projector; slots of one role count from 0."""

    role: str
    context: str
    slot: int

    @property
    def name(self) -> str:
        """handler-orders-0."""
        return f"{self.role}-{self.context}-{self.slot}"


class Alive(Struct):
    """A worker as the registry shows it; ``restarts`` counts its lives after the first."""

    role: str
    context: str
    slot: int
    pid: int
    restarts: int = 0


class Registry(Struct):
    """The workers of one run, in a file that ``labkit status`` reads."""

    run: str
    supervisor: int
    born: float
    client: str
    log: str
    partitions: int
    workers: list[Alive]


class Order(Struct):
    """What the supervisor is told, as one line of JSON on its standard input."""

    registry: str
    logs: str
    run: str
    client: str
    log: str
    partitions: int
    workers: list[Worker]
    commands: list[list[str]]


# --- in a worker process


def work(make: Callable[[], Steppable], name: str, every: float = 0.0) -> None:
    """Step until the life line breaks or SIGTERM comes; with ``every``, on a timer.

    An error that a new life can mend ends this one: close, make the part anew, go on.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):  # started by hand there is none
        threading.Thread(target=_watch_life_line, args=(stop,), daemon=True).start()
    calm_gc()
    log = structlog.get_logger().bind(worker=name, pid=os.getpid())
    pause = FIRST_PAUSE_SECONDS
    while not stop.is_set():
        part: Steppable | None = None
        born = time.monotonic()
        try:
            part = make()
            log.info("up")
            if every:
                on_a_timer(part.step, every, stop)
            while not stop.is_set():
                part.step()
        except LabkitError as error:
            log.warning("rejoin", error=type(error).__name__, why=str(error))
        finally:
            if part is not None:
                part.close()
        young = time.monotonic() - born < YOUNG_SECONDS
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if young else FIRST_PAUSE_SECONDS
        stop.wait(pause)
    log.info("down")


def on_a_timer(step: Callable[..., object], every: float, stop: threading.Event) -> None:
    """Scheduled mode: a step each ``every`` seconds until ``stop``, in this thread and in order.

    The scheduler only rings: a Kafka consumer belongs to one thread. While a step takes longer than
    ``every``, the bell rings once at most. What a step raises comes through.
    """
    from apscheduler.schedulers.background import BackgroundScheduler

    bell: queue.Queue[None] = queue.Queue(maxsize=1)

    def ring() -> None:
        with suppress(queue.Full):
            bell.put_nowait(None)

    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(ring, "interval", seconds=every, next_run_time=datetime.now(UTC))
    scheduler.start()
    try:
        while not stop.is_set():
            with suppress(queue.Empty):
                bell.get(timeout=0.1)
                step(POLL_SECONDS)
    finally:
        scheduler.shutdown()


def calm_gc() -> None:
    """Look for cycles less often.

    Who carries messages keeps many small objects that live long; going through all of them again
    and again took a quarter of a worker's time.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _watch_life_line(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 64):
        pass
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(0)  # a step that hangs: nothing is lost, the next owner replays


# --- in the supervisor process


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
        self.process: subprocess.Popen[bytes] | None = None

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
    """The supervisor's main: reads its order, keeps the workers alive until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def watch() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    registry, logs = Path(order.registry), Path(order.logs)
    children = [
        _Child(worker, command, logs / f"{order.run}-{worker.name}.log")
        for worker, command in zip(order.workers, order.commands, strict=True)
    ]
    try:
        while not stop.wait(0.05):
            born = [child.tend() for child in children]  # all of them, so no generator
            if any(born):
                _register(registry, order, children)
    finally:
        for child in children:
            if child.process is not None:
                _close(child.process)
        deadline = time.monotonic() + STOP_SECONDS + 1
        for child in children:
            if child.process is not None:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()
        registry.unlink(missing_ok=True)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _register(path: Path, order: Order, children: Sequence[_Child]) -> None:
    workers = [
        Alive(c.worker.role, c.worker.context, c.worker.slot, c.process.pid, c.restarts)
        for c in children
        if c.process is not None
    ]
    state = Registry(
        order.run,
        os.getpid(),
        _born(os.getpid()),
        order.client,
        order.log,
        order.partitions,
        workers,
    )
    write_whole(path, msgspec.json.encode(state))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it; a device or a pipe is written as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


# --- in the process that holds the Lab


class Workers:
    """The handle on a supervisor and its workers."""

    def __init__(self, order: Order, environment: dict[str, str]) -> None:
        self._registry = Path(order.registry)
        self._registry.parent.mkdir(parents=True, exist_ok=True)
        Path(order.logs).mkdir(parents=True, exist_ok=True)
        with (Path(order.logs) / f"{order.run}-supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from labkit.runtime import supervise; supervise()"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        self._log = Path(log.name)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def alive(self) -> list[Alive]:
        """The workers that live now."""
        self.check()
        found = read_registry(self._registry)
        return found.workers if found else []

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
                "is there a command to handle?"
            )
        return process.pid


def read_registry(path: Path) -> Registry | None:
    """A run's registry, or ``None`` where its supervisor is gone."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Registry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return found if _born(found.supervisor) == found.born else None


def _born(pid: int) -> float:
    """When a process was created: a pid alone may belong to another by now."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
