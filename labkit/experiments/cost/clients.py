"""The client processes of a trial: each has its own connections, and its own threads.

The service code of CRUD runs in the client, as in the threads of a web server; labkit's client is
what its HTTP API is, and handler and projector are workers. So CRUD has as many processes for its
rules as there are clients, and labkit has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Literal

import msgspec
from msgspec import Struct

from labkit.experiments.bench.subject import Subject
from labkit.experiments.cost import subject
from labkit.experiments.cost.connected import connected
from labkit.experiments.cost.crud import OUTBOX, Crud
from labkit.experiments.cost.fed_view import Feeder
from labkit.experiments.cost.relay import Relay
from labkit.experiments.cost.subject import SERVICE
from labkit.experiments.cost.writers import LOOKED, RESENT, Seen, Writers, merged, told_to_a_process
from labkit.experiments.processes import PATIENCE_SECONDS, hear, process, settings_of
from labkit.lab import Lab
from labkit.messages import Command
from labkit.run import references
from labkit.run.worker import calm_gc
from labkit.services import AGREEING

#: As many as there are cores on a small machine.
CLIENTS = 2
#: Feeder and relay wait so long for a change before they look whether they are to end.
FEED_SECONDS = 0.1


class Task(Struct, frozen=True):
    """What one client does. ``threads``, ``rate`` and ``count`` are those of one client;
    ``accounts`` is an option of the workload."""

    kind: Literal["opening", "closed", "open", "reading"]
    prefix: str
    seed: int
    accounts: int
    threads: int = 1
    seconds: float = 0.0
    count: int = 0
    rate: float = 0.0
    resent: float = RESENT
    looked: int = LOOKED


def serve(pipe: Connection, settings: dict[str, Any], arm: str, seed: int) -> None:
    """Do tasks until the pipe is closed."""
    with Lab(**settings, start=False) as lab:
        calm_gc()
        made = connected(arm, lab, seed)
        try:
            pipe.send_bytes(b"ready")
            while True:
                task = msgspec.json.decode(pipe.recv_bytes(), type=Task)
                seen = done(Writers(made, task.prefix, task.seed, task.resent), task)
                pipe.send_bytes(msgspec.json.encode(seen))
        finally:
            made.close()


def done(writers: Writers, task: Task) -> Seen:
    """One task, in this process."""
    of = subject.of("cost")

    def commands(thread: int) -> Iterator[Command]:
        return of.commands(task.seed * 1_000 + thread, accounts=task.accounts)

    def streams(thread: int) -> Iterator[str]:
        random, names = Random(f"{task.seed} reader {thread}"), opened(of, task.accounts)
        while True:
            yield random.choice(names)

    match task.kind:
        case "opening":
            every = list(of.opening(task.seed, accounts=task.accounts))
            place = {stream: n for n, stream in enumerate(opened(of, task.accounts))}

            def mine(thread: int) -> Iterator[Command]:
                return (c for c in every if place[c.stream] % task.threads == thread)

            return writers.closed(mine, task.threads, task.seconds)
        case "closed":
            return writers.closed(commands, task.threads, task.seconds, task.count)
        case "reading":
            return writers.reading(streams, task.threads, task.seconds)
    return writers.open(commands(0), task.rate, task.seconds, task.threads, task.looked)


def opened(of: Subject, accounts: int) -> list[str]:
    """The streams that the opening makes."""
    return list(dict.fromkeys(command.stream for command in of.opening(0, accounts=accounts)))


def feed(pipe: Connection, settings: dict[str, Any]) -> None:
    """Keep the view of the arm ``view``, until the pipe is closed."""
    with Lab(**settings, start=False) as lab:
        calm_gc()
        feeder = Feeder(lab.store)
        pipe.send_bytes(b"ready")
        while not pipe.poll():
            feeder.step(FEED_SECONDS)


def relay(pipe: Connection, settings: dict[str, Any], seed: int) -> None:
    """Pass on what stands in the outbox until told to stop; then report what was sent."""
    with Lab(**settings, start=False) as lab:
        calm_gc()
        arm = Crud(SERVICE, lab.store, tells=True, seed=seed)
        relay = Relay(SERVICE, lab.store, arm, references.process(AGREEING))
        changes = lab.store.changes({OUTBOX: None}, pause=0.002)
        pipe.send_bytes(b"ready")
        while not pipe.poll():
            if not relay.step():
                changes.poll(FEED_SECONDS)
        changes.close()
        pipe.send_bytes(msgspec.json.encode([*map(told_to_a_process, relay.followed)]))
        pipe.poll(PATIENCE_SECONDS)  # keep the pipe open until the parent has read it


class Clients:
    """All clients of a trial, from outside."""

    def __init__(self, lab: Lab, pipes: Sequence[Connection]) -> None:
        self._lab, self._pipes = lab, pipes

    def do(self, tasks: Sequence[Task]) -> Seen:
        """One task a client, at once; a client without one does nothing."""
        busy = list(zip(self._pipes, tasks, strict=False))
        for pipe, task in busy:
            pipe.send_bytes(msgspec.json.encode(task))
        return merged([msgspec.json.decode(hear(self._lab, pipe), type=Seen) for pipe, _ in busy])


@contextmanager
def clients(lab: Lab, arm: str, seed: int) -> Iterator[Clients]:
    """The processes of an arm: its clients, and the feeder if it has one."""
    settings = settings_of(lab)
    with ExitStack() as opened:
        pipes = [
            opened.enter_context(process(serve, settings, arm, seed * CLIENTS + number))
            for number in range(CLIENTS)
        ]
        waited = list(pipes)
        if arm == "view":
            waited.append(opened.enter_context(process(feed, settings)))
        for pipe in waited:
            hear(lab, pipe)
        yield Clients(lab, pipes)
