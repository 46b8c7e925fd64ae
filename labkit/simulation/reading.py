"""What the clients of a trial read, each as fresh as it asks for (C10)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from labkit.errors import Parked, TimedOut, Unreachable
from labkit.experiments.bench.sessions import Read, Write, sessions
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.messages import Token
from labkit.ports.clock import Clock
from labkit.query.bus import QueryBus
from labkit.read.freshness import Fresh, Version
from labkit.read.sessions import Session
from labkit.read.standard import ById
from labkit.service import Operation
from labkit.simulation.monitors import Monitors

#: How a client may read what it wrote; the calm choice is that it does not. Over the query bus it
#: asks for the version.
SESSION, BUS = "session", "bus"
WAYS = ("", "token", "version", "linearizable", SESSION, BUS)
#: A reader waits so long for its freshness.
WAIT_SECONDS = 1.0


class Surroundings(Protocol):
    """What clients need of a world, simulated or real; ``time`` is nanoseconds."""

    @property
    def clock(self) -> Clock: ...

    @property
    def time(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def monitors(self) -> Monitors: ...

    def note(self, kind: str, text: str, about: Iterable[str] = (), other: str = "") -> None:
        """Keep what has happened."""


class _Own(Struct):
    """The newest write of a client to a stream that it knows of."""

    version: int = 0
    token: Token | None = None


class Readers:
    """The reads of all clients, and the writes that they were told of. Instants are steps."""

    def __init__(self, lab: Lab, world: Surroundings) -> None:
        self.lab = lab
        self.world = world
        self._reads: list[Read] = []
        self._writes: list[Write] = []
        self._own: dict[tuple[str, str], _Own] = {}
        self._sessions: dict[str, Session] = {}
        self._buses: dict[str, QueryBus] = {}

    @property
    def verdict(self) -> Verdict:
        """C10."""
        return sessions(self._reads, self._writes)

    def wrote(self, client: str, operation: Operation) -> None:
        """A client was told that this took effect."""
        assert operation.answer is not None
        name = self._name(operation)
        own = self._own.setdefault((client, name), _Own())
        own.version = max(own.version, operation.answer.version)
        if operation.token and (own.token is None or operation.token > own.token):
            own.token = operation.token
        self._writes.append(Write(client, name, operation.answer.version, self.world.step))

    def read(self, client: str, operation: Operation, way: str) -> None:
        """Read the document of the stream that was written; whoever waits in vain gives up."""
        service = self.lab.bus.service_of(operation.command)
        stream, name = operation.command.stream, self._name(operation)
        own = self._own[client, name]
        if (view := service.first_view) is None or (way == "token" and own.token is None):
            return
        query, began = ById(f"{service.name}.{view.name}", stream), self.world.step
        fresh = _fresh(way, service.name, stream, own)
        try:
            if way == SESSION:
                session = self._sessions.setdefault(client, Session(self.lab.queries))
                session.wrote(Version(service.name, stream, own.version))
                found = session.ask(query, fresh=fresh)
            elif way == BUS:
                found = self._bus(client).ask(query, fresh=fresh, timeout=WAIT_SECONDS)
            else:
                found = self.lab.ask(query, fresh=fresh)
        except (TimedOut, Parked, Unreachable):
            return
        # A document of another stream is an answer to somebody else.
        shown = found["version"] if found and found["_id"] == stream else 0
        self._reads.append(
            Read(client, name, fresh.strategy, shown, began, self.world.step, way == SESSION)
        )
        self.world.note(
            "read", f"reads version {shown} of {stream} ({way})", (operation.id, stream), "store"
        )

    def _name(self, operation: Operation) -> str:
        """Two services may have streams of one name."""
        service = self.lab.bus.service_of(operation.command)
        return f"{service.name}/{operation.command.stream}"

    def _bus(self, client: str) -> QueryBus:
        if client not in self._buses:
            self._buses[client] = self.lab.parts.make_query_bus(self.lab.queries, lambda: None)
        return self._buses[client]


def _fresh(way: str, service: str, stream: str, own: _Own) -> Fresh:
    match way:
        case "token":
            assert own.token is not None
            return Fresh("token", (own.token,), WAIT_SECONDS)
        case "version" | "bus":
            goal = Version(service, stream, own.version)
            return Fresh("version", (goal,), WAIT_SECONDS)
        case "linearizable":
            return Fresh("linearizable", timeout=WAIT_SECONDS)
    return Fresh(timeout=WAIT_SECONDS)
