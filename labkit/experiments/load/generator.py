"""The generator of an open loop: a process that keeps its timetable whatever the servers do.

Every command has an intended instant, and latencies are measured from it: a slow server makes the
queue longer and not the load lighter (no coordinated omission).
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from labkit.errors import LabkitError
from labkit.experiments.intervals import quotient
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.lab import Lab
from labkit.messages import Command
from labkit.ports.broker import Acknowledgement, Sender
from labkit.run.worker import calm_gc
from labkit.service import route
from labkit.write.bus import CommandBus, Sent

#: The generator sends in ticks, since waking up for every command costs more than the command.
TICK_SECONDS = 0.001
#: The least length of each dry run.
DRY_SECONDS = 0.3
ACK_SECONDS = 60.0


class Ability(Struct, frozen=True):
    """The generator's greatest rates, in commands a second; 0: not measured.

    ``void``: timetable and encoding, nothing is sent. ``topic``: sent to a topic without readers,
    until all commands are acknowledged, while the rest of the system is idle.
    """

    void: float = 0.0
    topic: float = 0.0


class GeneratorReady(Struct, frozen=True):
    """The generator waits for its start; ``opened`` commands were sent before."""

    ability: Ability
    opened: int
    commands: int


def generate(pipe: Connection, settings: dict[str, Any], plan: Plan, dry: bool, count: Any) -> None:
    """Send a plan, then a table with a row for each command: acked (ns), partition, offset; -1: it
    failed.

    ``count`` is in shared memory: how many were sent so far. Says ``Ready``, is told the beginning
    (monotonic ns), and ends with one table of int64 whose first row holds the thousandths of a core
    that it took.
    """
    at = arrivals.instants(plan)
    with Lab(**settings, start=False) as lab:  # joining the run, it imports the services
        commands = list(arrivals.commands(plan, len(at)))
        opening = arrivals.opening(plan, len(at))
        ability = _dry_runs(lab, plan, commands) if dry else Ability()
        _offer(lab.bus, plan, opening, [1] * len(opening), "open", count)
        lab.bus.flush(ACK_SECONDS)
        calm_gc()
        sys.setswitchinterval(0.0005)  # the acknowledging thread must not delay us
        pipe.send_bytes(msgspec.json.encode(GeneratorReady(ability, len(opening), len(at))))
        beginning = int(pipe.recv_bytes())
        worked, began = time.process_time(), time.monotonic()
        acked = Acknowledged(len(at))
        _offer(lab.bus, plan, commands, (at + beginning).tolist(), "c", count, acked)
        table = acked.all()
        share = quotient(time.process_time() - worked, time.monotonic() - began)
        first = np.full((1, 3), round(share * 1000))
        pipe.send_bytes(np.concatenate([first, table]).astype(np.int64).tobytes())
        pipe.poll(None)  # until the parent has read it all


def acknowledged(data: bytes) -> tuple[NDArray[np.int64], float]:
    """The table of ``generate``, one row for each command, and the share of a core that it took."""
    table = np.frombuffer(data, np.int64).reshape(-1, 3)
    return table[1:], float(table[0, 0]) / 1000


class Acknowledged:
    """A thread that records when the broker acknowledges each command.

    It waits for the oldest, so an acknowledgement out of order (from another partition) is recorded
    with those before it.
    """

    def __init__(self, count: int) -> None:
        self._table = np.full((count, 3), -1, np.int64)
        self._waiting: deque[Sent] = deque()
        self._more = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()

    def append(self, sent: Sent) -> None:
        self._waiting.append(sent)
        self._more.release()

    def _note(self) -> None:
        for row in self._table:
            self._more.acquire()
            try:
                _, partition, offset = self._waiting.popleft().token(ACK_SECONDS)
            except LabkitError:
                continue
            row[:] = time.monotonic_ns(), partition, offset

    def all(self) -> NDArray[np.int64]:
        """Wait for the last acknowledgement; returns the table."""
        self._thread.join()
        return self._table


def _offer(
    bus: CommandBus,
    plan: Plan,
    commands: Iterable[Command],
    intended: Sequence[int],
    prefix: str,
    count: Any = None,
    acked: Acknowledged | None = None,
) -> None:
    """Send each command at its instant (monotonic ns), or as soon as possible after it."""
    ballast = arrivals.ballast(plan)
    for number, (command, instant) in enumerate(zip(commands, intended, strict=True)):
        while (ahead := instant - time.monotonic_ns()) > 0:
            time.sleep(max(ahead / 1e9, TICK_SECONDS))
        if count is not None:
            count.value += 1
        sent = bus.send(command, id=f"{prefix}{number}", correlation=ballast, intended=instant)
        if acked is not None:
            acked.append(sent)


# --- what it can do at most


class _Void:
    """A sender that sends nothing and acknowledges at once."""

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> Acknowledgement:
        return self

    def settled(self) -> bool:
        return True

    def result(self, timeout: float) -> tuple[int, int]:
        return 0, 0

    def flush(self, timeout: float) -> None: ...

    def close(self) -> None: ...


def _dry_runs(lab: Lab, plan: Plan, commands: list[Command]) -> Ability:
    topic = lab.topic_name(f"dry.{plan.service.name}.commands")
    lab.log_broker.create({topic: lab.partitions})
    void, sender = _dry(lab, plan, commands, _Void()), lab.log_broker.sender()
    return Ability(void, _dry(lab, plan, commands, sender))


def _dry(lab: Lab, plan: Plan, commands: list[Command], sender: Sender) -> float:
    """The greatest rate, in commands a second, through the same code as the run's.

    The number of commands is doubled until they take ``DRY_SECONDS``.
    """
    bus = CommandBus(
        route([plan.service]),
        lambda name: lab.topic_name(f"dry.{name}"),
        sender,
        lambda service: lab.broker.source(lab.topic_name(f"{service}.events")),
    )
    again = itertools.cycle(commands)

    def timed(count: int) -> float:
        began = time.monotonic()
        acked = Acknowledged(count)
        _offer(bus, plan, itertools.islice(again, count), [1] * count, "dry", acked=acked)
        acked.all()
        return time.monotonic() - began

    try:
        timed(100)  # connections, and what the client must know of the topic
        count = 500
        while (seconds := timed(count)) < DRY_SECONDS:
            count *= 2
        return count / seconds
    finally:
        bus.close()
