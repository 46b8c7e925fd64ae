"""A service: one object that holds all that a bounded context is.

::

    DESK = Service(
        "desk",
        decide={OpenTicket: open_ticket, CloseTicket: close_ticket},
        events=[TicketOpened, TicketClosed],
        evolve=evolve,
        state=Ticket,
        views=[Tickets()],
        queries=[TicketsOf],
    )

Bus, handler, projector, query bus, HTTP API, checkers, load generator and simulator are given
services and know nothing else of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce, wraps
from operator import or_
from typing import Any, get_args

from msgspec import Struct

from labkit.errors import UsageError
from labkit.messages import Codec, Command, Decisions, Event, Upcasts
from labkit.service import declared
from labkit.service.evidence import Audit, ReferenceModel, Workload
from labkit.service.guard import guarded
from labkit.service.process import Notices, Process
from labkit.service.query import Query, kebab
from labkit.service.view import KeyedView, View

NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
#: Names that topics, collections or addresses of a run use for something else.
RESERVED = {"api", "commands", "docs", "dry", "health", "live", "metrics", "run", "streams"}
#: Sets of types: a union, or a list.
Types = Any
#: What became of a rule: always events, and all of this service.
Ruling = Callable[[Any, Any], tuple[Event, ...]]


class Service:
    """One bounded context.

    Args:
        name: names topics, collections and addresses.
        decide: for each command type ``(state, command) -> event, events or None``; a rule says no
            by raising ``Refused``.
        events: the event types, as a list or a union.
        evolve: ``(state, event) -> state``; the state is ``None`` before the first event.
        state: the type of the state.
        fold: schema version of the state; raise it when ``state`` or ``evolve`` changes, and
            handlers fold anew from the log.
        commands: the command types; the default is the keys of ``decide``.
        upcasts: event type of an older schema -> function that makes today's event of it.
        views: the read models; without them there is the log alone.
        queries: the query types.
        public: commands that a stranger may send over HTTP: a list, or a mapping to addresses like
            ``POST /orders/{order_id}/payment``; the default is all, under
            ``POST /{service}/{id}/{name-of-the-command}``.
        notices: which business modules are told of an event.
        processes: process managers that run wherever this service and their other sources run.
        workload: ``(random) -> endless commands``, a ``Workload``, or several by name.
        invariants: by name, what must hold of a state at any time: ``(state) -> bool``.
        audits: by name, checkers of a whole run.
        model: the independent reference model for C9.

    Raises ``UsageError`` that names what does not fit together.
    """

    def __init__(
        self,
        name: str,
        *,
        decide: Decisions,
        events: Types,
        evolve: Callable[[Any, Any], Any],
        state: type[Struct],
        fold: int = 1,
        commands: Types = None,
        upcasts: Upcasts | None = None,
        views: Iterable[View | type[View]] = (),
        queries: Iterable[type[Query]] = (),
        public: Mapping[type[Command], str] | Iterable[type[Command]] | None = None,
        notices: Notices | None = None,
        processes: Iterable[Process] = (),
        workload: Callable[..., Any] | Workload | Mapping[str, Workload] | None = None,
        invariants: Mapping[str, Callable[[Any], bool]] | None = None,
        audits: Mapping[str, Audit] | None = None,
        model: ReferenceModel | None = None,
    ) -> None:
        self.name = name
        #: Where it was made: worker processes import it from there.
        self.module = str(sys._getframe(1).f_globals.get("__name__", "__main__"))
        self.commands = tuple(decide)
        self.events = _types(events)
        self._event_types = frozenset(self.events)
        self.state = state
        self.fold = fold
        self.upcasts: Upcasts = upcasts or {}
        self.views = tuple(declared.made_view(view) for view in views)
        asked = tuple(queries)
        self._check_kinds(self.commands if commands is None else _types(commands), asked)
        self._check_functions(decide, evolve)
        #: The rules: ``(state, command) -> events``, checked and stopped where they do not end.
        self.decide = {c: guarded(self._ruling(rule), state, c) for c, rule in decide.items()}
        #: Any event of this service, as a type.
        self.any_event = _union(self.events)
        self.evolve = guarded(evolve, state, self.any_event)
        self.queries = {kebab(query.__name__): query for query in asked}
        self.public = declared.addresses(name, self.commands, public)
        self.notices = notices
        self.processes = tuple(processes)
        self.workloads = _workloads(workload)
        self.invariants = dict(invariants or {})
        self.audits = dict(audits or {})
        self.model = model
        self._check()
        self.codec = Codec(_union(self.commands), self.any_event, self.upcasts)
        self.states = f"{name}.state.v{fold}"
        #: The command ids that do not fit into the documents of their streams any more.
        self.seen = f"{name}.seen.v{fold}"
        self.snapshots = f"{name}.snapshots"
        self.checkpoints = f"{name}.checkpoints"
        #: The name of the projection of all views.
        self.view = f"{name}.view"

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    def _ruling(self, rule: Callable[[Any, Any], Any]) -> Ruling:
        """A rule, whose answer is events; raises ``TypeError`` for anything else."""

        @wraps(rule)
        def ruling(state: Any, command: Any) -> tuple[Event, ...]:
            made = rule(state, command)
            events = (made,) if isinstance(made, Event) else tuple(made or ())
            for event in events:
                if type(event) not in self._event_types:
                    raise TypeError(f"{event!r:.100} is no event of service {self.name!r}")
            return events

        return ruling

    def checkpoint(self, partition: int) -> str:
        """The id of the handler's checkpoint."""
        return f"{self.states}:{partition}"

    def collection(self, view: View | type[View]) -> str:
        """The collection of a view."""
        return f"{self.view}.{view.name}"

    @property
    def first_view(self) -> View | None:
        """The first view with a document for each stream, if there is one."""
        return next((view for view in self.views if not isinstance(view, KeyedView)), None)

    def _check_kinds(self, commands: Sequence[type], queries: Sequence[type[Query]]) -> None:
        """Everything is what it has to be; only then can it be asked for more."""
        where = f"service {self.name!r}"
        if not NAME.fullmatch(self.name) or self.name in RESERVED:
            raise UsageError(
                f"{where}: a name is lower-case letters, digits and _, at most 31, and not one of "
                f"{', '.join(sorted(RESERVED))}"
            )
        declared.check_types(where, "decide", self.commands, Command)
        declared.check_types(where, "events", (*self.events, *self.upcasts), Event)
        for what, types in (("decide", self.commands), ("events", self.events)):
            if not types:
                raise UsageError(f"{where}: {what} must not be empty")
        if odd_ones := set(commands) ^ set(self.commands):
            odd = sorted(getattr(c, "__name__", repr(c)) for c in odd_ones)
            raise UsageError(f"{where}: not exactly one decision for {', '.join(odd)}")
        declared.check_types(where, "queries", queries, Query)
        if not isinstance(self.state, type) or not issubclass(self.state, Struct):
            raise UsageError(f"{where}: state must be a State or another msgspec.Struct type")
        if not isinstance(self.fold, int) or self.fold < 1:
            raise UsageError(f"{where}: fold must be a whole number from 1, got {self.fold!r}")

    def _check_functions(self, decide: Decisions, evolve: object) -> None:
        functions = {f"decide[{c.__name__}]": rule for c, rule in decide.items()}
        for name, function in {**functions, "evolve": evolve}.items():
            if not callable(function):
                raise UsageError(
                    f"service {self.name!r}: {name} must be a function, got {function!r:.100}"
                )

    def _check(self) -> None:
        where = f"service {self.name!r}"
        declared.check_streams(where, self.commands)
        declared.check_views(where, self.views)
        declared.check_queries(where, self.views, self.queries.values())


def _types(found: Types) -> tuple[type, ...]:
    """The types of a union or of a sequence; a single type counts as one."""
    if isinstance(found, (list, tuple, set, frozenset)):
        return tuple(found)
    return get_args(found) or (found,)


def _union(types: Sequence[type]) -> Any:
    return reduce(or_, types)


def _workloads(
    found: Callable[..., Any] | Workload | Mapping[str, Workload] | None,
) -> dict[str, Workload]:
    if found is None:
        return {}
    if isinstance(found, Workload):
        return {"default": found}
    if isinstance(found, Mapping):
        return dict(found)
    return {"default": Workload(found)}


def route(services: Iterable[Service]) -> dict[type[Command], Service]:
    """Which service each command goes to; raises ``UsageError`` if two services claim one."""
    routes: dict[type[Command], Service] = {}
    for service in services:
        for command in service.decide:
            if command in routes:
                raise UsageError(
                    f"{command.__name__} is claimed by {routes[command].name!r} "
                    f"and by {service.name!r}; leave it to one of them"
                )
            routes[command] = service
    return routes


__all__ = ["Service", "route"]
