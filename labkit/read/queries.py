"""The query path: be as fresh as asked, then read, all of it at one instant.

::

    queries.ask(OrdersOf("ann", status="paid"), fresh=LINEARIZABLE)

Each query takes a ``Fresh`` (``freshness.py``), whose goals ``until`` waits for. One wait serves
them all: a token, a version of a stream, and what the log holds at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar, get_type_hints

from msgspec import Struct

from labkit.errors import Conflict, Parked, Stopped, TimedOut, UsageError
from labkit.messages import Token
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.store import Checkpoint, Store, Watched
from labkit.read.freshness import (
    EVENTUAL,
    Fresh,
    Goal,
    Position,
    Version,
    checked_fresh,
    words,
)
from labkit.read.generations import Serving
from labkit.read.projection import parked_in, streams_of
from labkit.read.standard import STANDARD
from labkit.read.view_reads import Place, ViewReads
from labkit.service import Page, Query, Service, checked, kebab, made
from labkit.service.declared import Empty, reads_of
from labkit.service.guard import Misbehaved, guarded
from labkit.service.query import Which

#: Between two looks at a checkpoint: at first often, then a twentieth of the time waited so far,
#: since a look takes time from those who are waited for.
SHORTEST_LOOK_SECONDS = 0.001
LONGEST_LOOK_SECONDS = 0.02
#: Who does not wait for freshness waits at least so long for a look at one instant.
CONFLICT_SECONDS = 1.0
T = TypeVar("T")


class Readable(Struct, frozen=True):
    """What queries of one type may read: ``reads`` are the collections that they name, or all of
    their service; ``collections`` finds these by view."""

    service: str
    services: tuple[str, ...]
    collections: dict[Which, str]
    reads: tuple[str, ...]
    declared: bool


class Asked(Struct, frozen=True):
    """A checked query: whose it is, the services whose views it reads, and the stream that it is
    about, if it is about one."""

    query: Query
    service: str
    services: tuple[str, ...]
    collections: dict[Which, str]
    stream: tuple[str, str] | None
    #: What the answer may be read from, as far as that is known before the first read.
    watched: Watched


class Answered(Struct, frozen=True):
    """An answer, and the documents that it was read from."""

    value: Any
    places: frozenset[Place]


class Queries:
    """Answers from the views of one run.

    ``ends(service)`` gives the high watermarks of a service's events, by partition: where the
    commits are kept, open transactions included. ``drive`` is called while a query waits.
    """

    def __init__(
        self,
        store: Store,
        services: Mapping[str, Service],
        drive: Callable[[], None] = lambda: None,
        ends: Callable[[str], Mapping[int, int]] = lambda service: {},
        clock: Clock = SYSTEM,
    ) -> None:
        self._store = store
        self._clock = clock
        self._services = services
        self._drive = drive
        self._ends = ends
        self._home: dict[type[Query], str] = {}
        self._known: dict[tuple[type[Query], str], Readable] = {}
        self._collections: dict[Which, tuple[str, str]] = {}
        for service in services.values():
            for query in service.queries.values():
                if query in self._home:
                    raise UsageError(
                        f"{query.__name__} is a query of {self._home[query]!r} and of "
                        f"{service.name!r}; leave it to one of them"
                    )
                self._home[query] = service.name
            for view in service.views:
                found = service.name, service.collection(view)
                self._collections[type(view)] = self._collections[f"{service.name}.{view.name}"] = (
                    found
                )
        every: tuple[type[Query], ...] = (*self._home, *STANDARD)
        self._named = {kebab(kind.__name__): kind for kind in every}

    # --- asking

    def ask(self, query: Query, *, fresh: Fresh = EVENTUAL) -> Any:
        """The answer to a query.

        Raises ``UsageError`` for conditions that cannot be, ``TimedOut`` if the views are not that
        fresh in time, and ``Parked`` if it is about a stream that the view holds back.
        """
        return self.answer(self.asked(query), fresh).value

    def answer(self, asked: Asked, fresh: Fresh = EVENTUAL) -> Answered:
        """The answer to a checked query, with the places that it was read from."""

        def read(serving: Serving) -> Answered:
            views = ViewReads(serving, asked.collections)
            try:
                value = guarded(asked.query.read)(views)
            except Misbehaved as error:
                raise Stopped(f"{error}; is there a loop without an end in it?") from None
            return Answered(value, frozenset(views.places))

        return self._ask(asked, fresh, read)

    def asked(self, query: Query) -> Asked:
        """A query with its conditions checked; raises ``UsageError``."""
        return self._asked(checked(query))

    def named(self, name: str, conditions: Mapping[str, Any], service: str | None = None) -> Asked:
        """A query by the name of its class or its address (``OrdersOf``, ``orders-of``).

        Several services may have one of that name: that of ``service`` is meant.
        """
        own = {} if service is None else self._services[service].queries
        address = kebab(name)
        if (kind := own.get(address) or self._named.get(address)) is None:
            names = ", ".join(sorted(kind.__name__ for kind in (self._named | own).values()))
            raise UsageError(f"no query {name[:60]!r}; known: {names}")
        return self._asked(made(kind, conditions))

    def service_of(self, query: Query) -> str:
        """The service that a query belongs to; raises ``UsageError``."""
        if isinstance(query, STANDARD):
            if query.view not in self._collections:
                names = sorted(k for k in self._collections if isinstance(k, str))
                views = ", ".join(names) or "none"
                raise UsageError(f"no view {query.view[:60]!r} in this run; known: {views}")
            return self._collections[query.view][0]
        if (service := self._home.get(type(query))) is None:
            known = ", ".join(sorted(kind.__name__ for kind in self._home)) or "none"
            raise UsageError(
                f"no service of this run has the query {type(query).__name__}; known: {known}"
            )
        return service

    def _asked(self, query: Query) -> Asked:
        readable = self._readable(type(query), self.service_of(query))
        views = reads_of(query)
        return Asked(
            query,
            readable.service,
            readable.services,
            readable.collections,
            self._stream(views, readable),
            _watched(views, readable),
        )

    def _readable(self, kind: type[Query], service: str) -> Readable:
        """What a query may read: its own service's views, and those that it names."""
        if (known := self._known.get((kind, service))) is not None:
            return known
        own = [type(view) for view in self._services[service].views]
        named = [view for view in kind.reads if view in self._collections]
        may: dict[Which, tuple[str, str]] = {v: self._collections[v] for v in (*own, *named)}
        reads = tuple(self._collections[view] for view in (named if kind.reads else own))
        may |= {n: place for n, place in self._collections.items() if place in may.values()}
        found = self._known[kind, service] = Readable(
            service,
            tuple(dict.fromkeys(service for service, _ in reads)) or (service,),
            {name: collection for name, (_, collection) in may.items()},
            tuple(collection for _, collection in reads),
            bool(kind.reads),
        )
        return found

    def _stream(self, views: Empty, readable: Readable) -> tuple[str, str] | None:
        """The one stream that a query is about: it reads that document, and nothing else."""
        if len(views.ids) != 1 or len(views.found) != 1:
            return None
        view, id = views.ids[0]
        for service in readable.services:
            if readable.collections.get(view) == streams_of(self._services[service]):
                return service, id
        return None

    def watched_by(self, service: str) -> Watched:
        """All that the answers to the queries of a service may be read from."""
        found = self._services[service]
        reads = [self._readable(kind, service).reads for kind in found.queries.values()]
        own = [found.collection(view) for view in found.views]
        return dict.fromkeys([*own, *(name for names in reads for name in names)])

    # --- freshness

    def _ask(self, asked: Asked, fresh: Fresh, read: Callable[[Serving], T]) -> T:
        """The way of every query.

        A query about one stream that asks for more than what is there raises ``Parked`` if the view
        holds that stream back.
        """
        goals = self._goals(checked_fresh(fresh), asked.services)
        streams = [asked.stream] if asked.stream and goals else []
        return self._wait(goals, fresh.timeout, read, streams=streams)

    def _goals(self, fresh: Fresh, services: Iterable[str]) -> list[Goal]:
        """What the views must have reached; linearizable: all that is in their logs by now."""
        if fresh.strategy != "linearizable":
            return list(fresh.goals)
        return [
            Position(service, partition, end)
            for service in services
            for partition, end in self._ends(service).items()
            if end > 0
        ]

    def checkpoints(self, service: str) -> dict[int, Checkpoint]:
        """By partition, how far the views of a service are."""
        return Serving(self._store).checkpoints(f"{service}.view")

    def reached(self, service: str) -> dict[int, int]:
        """By partition, the highest command offset that the views of a service have applied."""
        return {p: checkpoint.command for p, checkpoint in self.checkpoints(service).items()}

    def until(
        self,
        goals: Iterable[Goal],
        timeout: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until the views have reached the ``goals``.

        ``meanwhile`` is called between two looks. Raises ``TimedOut`` with what is still missing.
        """
        self._wait(list(goals), timeout, lambda views: None, meanwhile)

    def behind(self, goals: Iterable[Goal]) -> dict[Goal, int]:
        """One look, for a caller that must not wait: the goals not reached, each with what is."""
        wanted = list(goals)
        with suppress(Conflict), self._store.snapshot() as reads:
            return dict(self._behind(Serving(reads), wanted))
        return dict.fromkeys(wanted, -1)

    def _wait(
        self,
        goals: list[Goal],
        timeout: float,
        read: Callable[[Serving], T],
        meanwhile: Callable[[], None] = lambda: None,
        streams: Iterable[tuple[str, str]] = (),
    ) -> T:
        """The one wait of all freshness: each look is at one instant, and so is what it reads."""
        for goal in goals:
            self.check_views(goal.service)
        streams = {*streams, *((g.service, g.stream) for g in goals if isinstance(g, Version))}
        began = self._clock.seconds()
        if goals:
            self._drive()
        while True:
            behind: list[tuple[Goal, int]] = []
            with suppress(Conflict), self._store.snapshot() as reads:
                views = Serving(reads)
                _check_parked(views, streams)
                behind = self._behind(views, goals)
                if not behind:
                    return read(views)
            goals = [goal for goal, _ in behind] or goals
            waited = self._clock.seconds() - began
            if behind and waited > timeout:
                goal, at = behind[0]
                raise TimedOut(
                    f"the view of {goal.service!r} did not reach {words(goal)} within "
                    f"{timeout:g} s, it is at {at}; is its projector running? lab.start() or "
                    f"`labkit run projector --service {goal.service} --run RUN` starts one"
                )
            if not behind and waited > max(timeout, CONFLICT_SECONDS):
                raise TimedOut(
                    f"at each look for {waited:.1f} s a collection was being changed; ask again"
                )
            meanwhile()
            self._drive()
            self._clock.sleep(min(max(waited / 20, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS))

    def check_views(self, service: str) -> None:
        """Raises ``UsageError`` if this run has no views of a service."""
        known = self._services.get(service)
        if known is None or not known.views:
            views = ", ".join(s.name for s in self._services.values() if s.views) or "none"
            raise UsageError(f"no views of {service[:60]!r} to wait for; this run has {views}")

    def _behind(self, views: Serving, goals: list[Goal]) -> list[tuple[Goal, int]]:
        """The goals that are not reached, each with what is."""
        places = {g.service for g in goals if not isinstance(g, Version)}
        checkpoints = {name: views.checkpoints(self._services[name].view) for name in places}
        streams: dict[str, set[str]] = {}
        for goal in goals:
            if isinstance(goal, Version):
                streams.setdefault(goal.service, set()).add(goal.stream)
        versions = {
            name: views.load(streams_of(self._services[name]), ids) for name, ids in streams.items()
        }
        behind = []
        for goal in goals:
            if isinstance(goal, Version):
                at = versions[goal.service].get(goal.stream, {}).get("version", 0)
                wanted = goal.version
            else:
                checkpoint = checkpoints[goal.service].get(goal.partition, Checkpoint("", 0))
                is_token = isinstance(goal, Token)
                at, wanted = checkpoint.command if is_token else checkpoint.position, goal.offset
            if at < wanted:
                behind.append((goal, at))
        return behind


def _watched(views: Empty, readable: Readable) -> Watched:
    """What an answer is read from, as far as a read of empty views shows it.

    What the query names and did not read there, it may read once it has found something.
    """
    found: dict[str, set[str] | None] = {}
    by_id = {view for view, _ in views.ids}
    for view, id in views.ids:
        if (collection := readable.collections.get(view)) is not None:
            ids = found.setdefault(collection, set())
            assert ids is not None
            ids.add(id)
    for view, _ in views.found:
        if view not in by_id and (collection := readable.collections.get(view)) is not None:
            found[collection] = None
    if readable.declared or not found:
        for collection in readable.reads:
            found.setdefault(collection, None)
    return found


@cache
def answer_type(query: type[Query]) -> Any:
    """The type of a query's answers, from the annotation of its ``read``."""
    with suppress(Exception):  # an annotation that cannot be read says nothing
        return get_type_hints(query.read).get("return", Any)
    return Any


def is_page(query: type[Query]) -> bool:
    """Whether a query answers in pages."""
    return answer_type(query) is Page


def _check_parked(views: Serving, streams: Iterable[tuple[str, str]]) -> None:
    """Raises ``Parked`` if a view holds one of the streams back: no wait would end well."""
    for service, stream in streams:
        view = f"{service}.view"
        if not any(checkpoint.parked for checkpoint in views.checkpoints(view).values()):
            continue
        if letter := views.load(parked_in(view), [stream]).get(stream):
            raise Parked(
                f"{stream!r} is parked in {view!r} since offset {letter['offset']} of partition "
                f"{letter['partition']}: {letter['reason']}; see `labkit dead-letters`"
            )
