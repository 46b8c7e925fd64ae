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
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from numbers import Integral
from typing import Any, Protocol

import structlog
from msgspec import Struct

from labkit.errors import LabkitError, TooSlow, UsageError

#: Python adds the current folder to what is imported from, unless this is set. A `kafka.py` of a
#: learner there would hide the client from all processes that are started.
SAFE_PATH = "PYTHONSAFEPATH"
#: A worker that dies young waits before its next life, a little longer each time.
YOUNG_SECONDS = 2.0


FIRST_PAUSE_SECONDS = 0.25


LONGEST_PAUSE_SECONDS = 4.0
STOP_SECONDS = 5.0


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
    service: str
    slot: int

    @property
    def name(self) -> str:
        """handler-orders-0."""
        return f"{self.role}-{self.service}-{self.slot}"


def work(make: Callable[[int], Steppable], name: str, every: float = 0.0) -> None:
    """Step until the life line breaks or SIGTERM comes; with ``every``, on a timer. Who was started
    by hand has no life line, and ends at Ctrl-C.

    An error that a new life can mend ends this one: close, make the part anew, go on. ``make`` is
    told how often a batch was too large for a transaction: each time, half of it is enough.
    """
    stop = threading.Event()
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupts.append(number)
        stop.set()
        if len(interrupts) > 1:  # it hangs, in a join for example
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if by_hand():
        signal.signal(signal.SIGINT, interrupt)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
        threading.Thread(target=_watch_life_line, args=(stop,), daemon=True).start()
    calm_gc()
    log = structlog.get_logger().bind(worker=name, pid=os.getpid())
    pause, halved = FIRST_PAUSE_SECONDS, 0
    while not stop.is_set():
        part: Steppable | None = None
        born = time.monotonic()
        try:
            part = make(halved)
            log.info("up")
            if every:
                on_a_timer(part.step, every, stop)
            while not stop.is_set():
                part.step()
        except LabkitError as error:
            halved += isinstance(error, TooSlow)
            log.warning("rejoin", error=type(error).__name__, why=str(error))
        finally:
            if part is not None:
                part.close()
        young = time.monotonic() - born < YOUNG_SECONDS
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if young else FIRST_PAUSE_SECONDS
        stop.wait(pause)
    log.info("down")
    if interrupts:
        raise KeyboardInterrupt


def check_counts(counts: Mapping[Any, int]) -> None:
    """Raises ``UsageError`` for a number of workers that cannot be."""
    for role, count in counts.items():
        if not isinstance(count, Integral) or count < 0:
            raise UsageError(f"the {role} workers of each service must be 0 or more, got {count!r}")


def by_hand() -> bool:
    """Whether this worker was started in a terminal: there is no life line to a supervisor."""
    return not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)


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
