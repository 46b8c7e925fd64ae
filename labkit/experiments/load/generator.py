"""The generator of an open loop: a process that keeps its timetable whatever the servers do.

Every command has an intended instant, and latencies are measured from it: a slow server makes the
queue longer and not the load lighter (no coordinated omission).
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from labkit.errors import LabkitError
from labkit.experiments.load import arrivals
from labkit.experiments.load.arrivals import Plan
from labkit.lab import Lab
from labkit.messages import Command
from labkit.ports.broker import Acknowledgement, Sender
from labkit.run.worker import calm_gc
from labkit.service import route
from labkit.write.bus import CommandBus, Prepared

#: The generator sends in ticks, since a wake-up and a request to the broker cost far more than a
#: command (at 3,000 a second a tick of 5 ms halves what both take). A tick lasts 2 us for each
#: command a second, within these bounds; a command waits half a tick on average.
SHORTEST_TICK, LONGEST_TICK = 0.001, 0.005
#: The least length of each dry run, and the number of commands that it sends again and again.
DRY_SECONDS, DRY_COMMANDS = 0.3, 1_000
ACK_SECONDS = 60.0


class Ability(Struct, frozen=True):
    """The generator's greatest rates, in commands a second; 0: not measured.

    ``void``: the timetable alone, nothing is sent. ``topic``: sent to a topic without readers,
    until all commands are acknowledged, while the rest of the system is idle.
    """

    void: float = 0.0
    topic: float = 0.0


class GeneratorReady(Struct, frozen=True):
    """The generator waits for its start; ``opened`` commands were sent before."""

    ability: Ability
    opened: int
    commands: int
    pid: int
    client: str


def generate(pipe: Connection, settings: dict[str, Any], plan: Plan, dry: bool, count: Any) -> None:
    """Send a plan, then a table with a row for each command: acked (ns), partition, offset; -1: it
    failed.

    ``count`` is in shared memory: how many were sent so far. Says ``Ready``, is told the beginning
    (monotonic ns), and ends with the table, of int64.
    """
    at = arrivals.instants(plan)
    with Lab(**settings, start=False) as lab:  # joining the run, it imports the services
        opening = _prepared(lab.bus, plan, arrivals.opening(plan, len(at)), "open")
        commands = _prepared(lab.bus, plan, arrivals.commands(plan, len(at)), "c")
        ability = _dry_runs(lab, plan) if dry else Ability()
        _offer(lab.bus, opening, [1] * len(opening), count)
        lab.bus.flush(ACK_SECONDS)
        calm_gc()
        sys.setswitchinterval(0.0005)  # the acknowledging thread must not delay us
        pipe.send_bytes(
            msgspec.json.encode(
                GeneratorReady(ability, len(opening), len(at), os.getpid(), lab.settings.client)
            )
        )
        beginning = int(pipe.recv_bytes())
        acked = Acknowledged(len(at))
        tick = min(max(SHORTEST_TICK, 2e-6 * plan.rate), LONGEST_TICK)
        _offer(lab.bus, commands, (at + beginning).tolist(), count, acked, tick)
        pipe.send_bytes(acked.all().tobytes())
        pipe.poll(None)  # until the parent has read it all


def acknowledged(data: bytes) -> NDArray[np.int64]:
    """The table of ``generate``, one row for each command."""
    return np.frombuffer(data, np.int64).reshape(-1, 3)


class Acknowledged:
    """A thread that records when the broker acknowledges each command.

    It waits for the oldest, so an acknowledgement out of order (from another partition) is recorded
    with those before it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows = array("q")
        self._waiting: SimpleQueue[Acknowledgement] = SimpleQueue()
        #: Given what was sent, in its order.
        self.append = self._waiting.put
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()

    def _note(self) -> None:
        next, note, now = self._waiting.get, self._rows.extend, time.monotonic_ns
        for _ in range(self._count):
            try:
                place = next().result(ACK_SECONDS)
            except LabkitError:
                note((-1, -1, -1))
            else:
                note((now(), *place))

    def all(self) -> NDArray[np.int64]:
        """Wait for the last acknowledgement; returns the table."""
        self._thread.join()
        return np.frombuffer(self._rows, np.int64).reshape(-1, 3)


def _prepared(
    bus: CommandBus, plan: Plan, commands: Iterable[Command], prefix: str
) -> list[Prepared]:
    """The commands as they will be sent: what can be done before the run is done before it."""
    ballast = arrivals.ballast(plan)
    return [
        bus.prepare(command, id=f"{prefix}{number}", correlation=ballast)
        for number, command in enumerate(commands)
    ]


def _offer(
    bus: CommandBus,
    commands: Iterable[Prepared],
    intended: Sequence[int],
    count: Any = None,
    acked: Acknowledged | None = None,
    tick: float = SHORTEST_TICK,
) -> None:
    """Send each command at its instant (monotonic ns) or in the ``tick`` seconds after it, as far
    as possible."""
    now, send = time.monotonic_ns, bus.send_prepared
    for command, instant in zip(commands, intended, strict=True):
        while (ahead := instant - now()) > 0:
            time.sleep(max(ahead / 1e9, tick))
        if count is not None:
            count.value += 1
        sent = send(command, instant)
        if acked is not None:
            acked.append(sent)


# --- what it can do at most


class _Void:
    """A sender that sends nothing and acknowledges at once."""

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> Acknowledgement:
        return self

    def result(self, timeout: float) -> tuple[int, int]:
        return 0, 0

    def flush(self, timeout: float) -> None: ...

    def close(self) -> None: ...


def _dry_runs(lab: Lab, plan: Plan) -> Ability:
    topic = lab.topic_name(f"dry.{plan.service.name}.commands")
    lab.log_broker.create({topic: lab.partitions})
    void, sender = _dry(lab, plan, _Void()), lab.log_broker.sender()
    return Ability(void, _dry(lab, plan, sender))


def _dry(lab: Lab, plan: Plan, sender: Sender) -> float:
    """The greatest rate, in commands a second, through the same code as the run's.

    The number of commands is doubled until they take ``DRY_SECONDS``.
    """
    bus = CommandBus(
        route([plan.service]),
        lambda name: lab.topic_name(f"dry.{name}"),
        sender,
        lambda service: lab.broker.source(lab.topic_name(f"{service}.events")),
    )
    few = len(arrivals.instants(plan))
    again = itertools.cycle(
        _prepared(bus, plan, arrivals.commands(plan, min(few, DRY_COMMANDS)), "dry")
    )

    def timed(count: int) -> float:
        began = time.monotonic()
        acked = Acknowledged(count)
        _offer(bus, itertools.islice(again, count), [1] * count, acked=acked)
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
