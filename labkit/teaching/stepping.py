"""Stepping by hand: run the parts of a lab in this process until there is no work left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Fenced, TimedOut
from labkit.messages import Command
from labkit.read.freshness import Position
from labkit.read.projection import ServiceProjection
from labkit.read.projector import Projector
from labkit.read.queries import Queries
from labkit.service import Query
from labkit.teaching.looking import Looked

if TYPE_CHECKING:
    import pandas as pd


def catch_up(lab: Looked, timeout: float = 30.0) -> None:
    """Wait until the handler and the projector of the first service have no lag.

    Raises ``TimedOut``.
    """
    deadline = time.monotonic() + timeout
    while behind := lab.lag("handler", lab.first) + lab.lag("projector", lab.first):
        if time.monotonic() > deadline:
            raise TimedOut(
                f"the handler and the projector of {lab.first!r} are still {behind} records behind "
                f"after {timeout:g} s; are they running? lab.start() starts them, and `labkit "
                "status` shows them"
            )
        time.sleep(0.05)


def work(lab: Any, service: str | None = None, wait: float = 1.0) -> int:
    """Step a handler until no command is left, and save its states.

    Returns the number of commands that it decided on.
    """
    handler, done = lab.by_hand("handler", service), 0
    while made := handler.step(wait):
        done += len(made)
    handler.flush()
    return done


def project(lab: Any, service: str | None = None, wait: float = 0.3) -> int:
    """Step a projector until its views have applied the whole log.

    Returns the number of applied commits. If it is fenced, its successor continues, as with worker
    processes.
    """
    done, service = 0, service or lab.first
    while lab.lag("projector", service):
        with suppress(Fenced):
            done += lab.by_hand("projector", service).step(wait)
    return done


def stop_part(lab: Any, role: str, service: str | None = None) -> None:
    """Close a part that is stepped by hand; the next step starts its successor."""
    lab._by_hand.forget(role, service or lab.first)


def settle(lab: Any, wait: float = 0.3) -> int:
    """Step every part of a lab, in the order of a message, until no part is behind.

    Scheduled commands wait until they are due. Returns the number of steps that found work.
    """
    steps, moved = 0, True
    while moved:
        moved = False
        for role in ("handler", "process", "projector"):
            for host in lab.instances_of(role):
                part = lab.by_hand(role, host)
                while part.step(0) or lab.lag(role, host):
                    moved = True
                    steps += bool(part.step(wait))
    for service in lab.services:
        lab.by_hand("handler", service).flush()
    return steps


def step_while_waiting(lab: Any, service: str | None = None) -> Queries:
    """Queries of a lab that is stepped by hand: a waiting query steps it and prints each step."""
    work = {"handler": "decided on", "projector": "put into the view"}

    def step() -> None:
        for role, what in work.items():
            made = lab.by_hand(role, service).step(0.1)
            if count := made if role == "projector" else len(made):
                print(f"   while the query waits, the {role} steps: {count} {what}")

    return Queries(lab.store, lab.services, step, lab.queries._ends)


def answer_all(lab: Any, count: int, query: Query, *, take: bool = False, wait: float = 1.0) -> Any:
    """Send a query ``count`` times, and step the query handler until all are answered.

    Returns the number of answers from the cache, and the seconds of these steps; with ``take``, the
    last answer instead.
    """
    bus, seconds = lab.query_bus, 0.0
    service = lab.queries.asked(query).service
    questions = [bus.send(query) for _ in range(count)]
    bus.flush()
    results: list[Any] = []
    while len(results) < count:
        began = time.perf_counter()
        if lab.by_hand("query", service).step(0.1 if results else wait):
            seconds += time.perf_counter() - began
        results += bus.hear(0.05)
    if take:
        return bus.answer(questions[-1])
    return sum(result.cached for result in results), seconds


class Copy:
    """A second copy of a service's views, in this process, from the same log.

    Its projector runs only in ``catch_up``. ``queries`` read this copy.
    """

    def __init__(self, lab: Any, service: str | None = None) -> None:
        self._lab, self._service = lab, lab.of.service(service or lab.first)
        self._store = MemoryStore()
        self.queries = Queries(self._store, lab.services, ends=lab.queries._ends)

    def catch_up(self, timeout: float = 30.0) -> None:
        """Project the log to its current end. Raises ``TimedOut``."""
        service = self._service
        source = self._lab.broker.source(
            self._lab.topic_name(f"{service.name}.events"),
            self._lab.of.group("projector", f"{service.name}.copy"),
        )
        projection = ServiceProjection(service)
        projector = Projector(projection, service.codec, source, self._store, service.checkpoints)

        def step() -> None:
            projector.step(0.3)

        try:
            projector.join(self._lab.partitions)
            ends = source.ends().items()
            goals = [Position(service.name, partition, end) for partition, end in ends if end]
            self.queries.until(goals, timeout, step)
        finally:
            projector.close()


def seconds_for(lab: Any, commands: Sequence[Command], wait: float = 10.0) -> float:
    """Send commands, then measure the seconds that the handler takes to decide on all of them."""
    for command in commands:
        lab.bus.send(command)
    lab.bus.flush()
    handler, done, began = lab.handler, 0, time.perf_counter()
    while done < len(commands):
        done += len(handler.step(wait))
    return time.perf_counter() - began


def one_by_one(lab: Any, commands: Sequence[Command], every: float, stall: float) -> pd.DataFrame:
    """A closed loop: one command every ``every`` seconds, if the previous one is answered by then.

    After a quarter of the commands the handler stops for ``stall`` seconds. The first command opens
    the connections and is not measured. The others give one row each: ``at`` (the intended instant,
    in seconds), and the milliseconds until the answer, ``from_intended_ms`` and ``from_sent_ms``.
    """
    import pandas as pd

    lab.bus.listen("orders")

    def answered(command: Command, pause: float = 0.0) -> float:
        token = lab.bus.send(command).token()
        time.sleep(pause)
        while lab.bus.heard(token) is None:
            lab.handler.step(0.05)
            lab.bus.hear("orders", 0.05)
        return time.monotonic()

    began, rows = answered(commands[0]), []
    for number, command in enumerate(commands[1:]):
        at = number * every
        time.sleep(max(0.0, began + at - time.monotonic()))
        sent = time.monotonic()
        heard = answered(command, stall if number == len(commands) // 4 else 0.0)
        rows.append((at, 1e3 * (heard - began - at), 1e3 * (heard - sent)))
    return pd.DataFrame(rows, columns=["at", "from_intended_ms", "from_sent_ms"])
