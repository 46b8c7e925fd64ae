"""What a notebook holds: ``Lab(...)``, a run with the tools to step it by hand and to look at it.

::

    lab = Lab()                                        # real Kafka and MongoDB; started if not up
    lab = Lab(backend="memory")                        # no server at all, the same cells run
    lab = Lab(services=["desk:DESK", "orders"])        # a service of your own, and a built-in one

    lab.bus, lab.ask(OrderById("o1"))                  # the two ends
    lab.handler, lab.projector                         # the parts, to be stepped by hand
    lab.start()                                        # or as worker processes
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from labkit import stack
from labkit.errors import UsageError
from labkit.log.dead_letter import DeadLetter
from labkit.log.event_log import HISTORY, EventLog
from labkit.log.partition import peek, row
from labkit.messages import Answer
from labkit.ports.failpoints import Failpoint
from labkit.ports.world import REAL, World
from labkit.process.inbox import Module
from labkit.query.bus import QueryBus
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.generations import Serving
from labkit.read.projection import streams_of
from labkit.read.projector import Projector
from labkit.read.queries import Queries
from labkit.read.rebuild import KEEP_SECONDS, Progress, Rebuild
from labkit.read.sessions import Session
from labkit.read.subscriptions import Subscription
from labkit.run import started
from labkit.run.autoscaler import Bounds
from labkit.run.by_hand import ByHand, Crashed
from labkit.run.elastic import Autoscaling, ScaledRole
from labkit.run.positions import Positions
from labkit.run.registry import Alive
from labkit.run.run import Role, Run
from labkit.run.starting import start_workers, wait_until_owned
from labkit.run.supervisor import Workers
from labkit.run.wiring import Parts
from labkit.run.worker import Worker, check_counts
from labkit.service import Process, Query, Service, route
from labkit.services import DEFAULT
from labkit.write.bus import CommandBus
from labkit.write.dead_letters import DeadLetters, Waiting
from labkit.write.handler import Handler

if TYPE_CHECKING:
    import pandas as pd

    from labkit.plots.film import Film
    from labkit.streams.streams import Streams

#: A reader that got nothing for so long is stuck behind a transaction that is open.
STUCK_SECONDS = 2.0
#: While somebody waits, servers and supervisor are looked at this often.
LOOK_SECONDS = 2.0


class Lab:
    """One run: its topics, its database, its parts.

    Args:
        name: of the servers (``labkit up --lab NAME``).
        backend: ``kafka`` (real Kafka and MongoDB) or ``memory``.
        run: joins an existing run, with its services and settings; the default is a new one with
            topics and a database of its own.
        services: what takes part: names of built-in services, ``module:ATTRIBUTE``, or objects;
            the default is orders and catalog.
        processes: process managers between them, in the same way; the services that they listen to
            take part, too.
        start: start servers that are not up; otherwise that is ``Unreachable``.
        report: is given a line for each step of starting servers.
        world: time, chance and threads of all that works in this process.
        settings: how the parts work, by name: see ``run.settings.Settings``. Who joins a run may
            choose its ``client``, and nothing else.

    Raises ``UsageError`` for an unknown value or run, and ``StackError`` if there are no servers.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        backend: str = "kafka",
        run: str | None = None,
        services: Sequence[str | Service] | None = None,
        processes: Sequence[str | Process] = (),
        start: bool = True,
        report: Callable[[str], None] = lambda _: None,
        world: World = REAL,
        **settings: Any,
    ) -> None:
        if run is not None and (services is not None or processes):
            raise UsageError(
                f"run {run!r} has its services already; leave out services and processes to join it"
            )
        if run is None:
            started.tell()
        self._in_block = False
        self.of = Run(
            name,
            backend=backend,
            run=run,
            services=DEFAULT if services is None else services,
            processes=processes,
            start=start,
            report=report,
            settings=settings,
            world=world,
        )
        self.name, self.run, self.backend = name, self.of.run, backend
        self.settings, self.partitions = self.of.settings, self.of.partitions
        self.services, self.processes = self.of.services, self.of.processes
        self.servers = self.of.servers
        if run is None and self.servers is not None and (line := stack.tight(name)):
            started.say(line)
        self.store, self.broker, self.log_broker = self.of.store, self.of.broker, self.of.log_broker
        self.topic_name, self.instances_of = self.of.topic_name, self.of.instances_of
        self.parts = Parts(self.of, world)
        self._world = world
        self.positions = Positions(self.of)
        self._by_hand = ByHand(self.parts)
        self._workers: Workers | None = None
        self._scalers: list[Autoscaling] = []
        self._driven: list[Role] = []
        self._stepping: str | None = None
        self._looked = time.monotonic()
        self._event_logs: dict[str, EventLog] = {}
        #: Answers from the views, read in this process.
        self.queries = Queries(self.store, self.services, self.drive, self._watermarks, world.clock)

    @property
    def first(self) -> str:
        """The service that is meant if none is named."""
        if not self.services:
            raise UsageError("this run has no service")
        return next(iter(self.services))

    # --- the two ends

    @cached_property
    def bus(self) -> CommandBus:
        """Where commands go in."""
        return CommandBus(
            route(self.services.values()),
            self.topic_name,
            self.log_broker.sender(),
            lambda service: self.broker.source(self.topic_name(f"{service}.events")),
            *(self._world.clock, self._world.ids),
            drive=self.drive,
            in_flight=self.settings.in_flight,
        )

    def ask(self, query: Query, *, fresh: Fresh = EVENTUAL) -> Any:
        """The answer to a query, read here; see ``Queries.ask``."""
        return self.queries.ask(query, fresh=fresh)

    @cached_property
    def query_bus(self) -> QueryBus:
        """Where queries go in that are answered through Kafka, by the query handlers."""
        return self.parts.make_query_bus(self.queries, self.drive)

    def subscribe(self, query: Query, *, fresh: Fresh = EVENTUAL) -> Subscription:
        """The answer to a query, and then its updates, read here. Close it.

        Monotonic: none shows less of the log than the one before.
        """
        return Subscription(self.store, Session(self.queries), query, fresh, self.drive)

    def log(self, service: str | None = None) -> EventLog:
        """What the events topic of a service says."""
        name = service or self.first
        if name not in self._event_logs:
            again = partial(self.broker.source, self.topic_name(f"{name}.events"))
            self._event_logs[name] = EventLog(self.of.service(name), again(), self.store, again)
        return self._event_logs[name]

    # --- the parts, by hand

    @property
    def handler(self) -> Handler:
        """The handler of the first service, in this process, owning all partitions."""
        return self.by_hand("handler")  # type: ignore[no-any-return]

    @property
    def projector(self) -> Projector:
        """The projector of the first service, in this process, owning all partitions."""
        return self.by_hand("projector")  # type: ignore[no-any-return]

    def by_hand(self, role: Role, service: str | None = None) -> Any:
        """A part in this process. Raises ``UsageError`` while worker processes are running."""
        if self._workers is not None or self._scalers:
            raise UsageError(
                "worker processes are running; call lab.stop() before stepping by hand"
            )
        return self._by_hand.get(role, service or self.first)

    def crash(self, role: Role, at: Failpoint, service: str | None = None) -> Crashed:
        """Let a part die at a failpoint, for real: a process of its own, killed by SIGKILL.

        The next step by hand is its next life. In memory the part is dropped at the failpoint.
        Raises ``TimedOut`` if the failpoint was not reached: give it something to do first.
        """
        return self._by_hand.crash(role, at, service or self.first)

    # --- the parts, as processes

    def start(
        self,
        handlers: int = 1,
        projectors: int = 1,
        processes: int = 1,
        notifiers: int = 0,
        queries: int = 0,
        schedulers: int = 0,
    ) -> None:
        """Start this many workers of each service and process manager, and schedulers of the run.

        Returns when they own all partitions; query handlers are not waited for. On the MongoDB log
        each service has one relay, too. In memory, who waits for an answer steps the parts.
        """
        counts: dict[Role, int] = {"handler": handlers, "relay": 1, "projector": projectors}
        counts |= {"process": processes, "notifier": notifiers, "query": queries}
        counts["scheduler"] = schedulers
        check_counts(counts)
        if self.backend == "memory":
            self._driven = [role for role, count in counts.items() if count]
            return
        if self._workers is not None:
            raise UsageError(f"the workers of run {self.run!r} are running already")
        self.of.check_importable()
        started.stop_replaced()
        self._close_parts()
        workers = [
            Worker(role, instance, slot)
            for role, count in counts.items()
            for instance in self.instances_of(role)
            for slot in range(count)
        ]
        before = self.positions.epochs()
        crew = self._workers = start_workers(self.of, workers, self.of.registry())
        if not self._in_block:
            started.keep(self)
        try:
            wait_until_owned(self.of, self.positions, workers, before, crew, self.check)
        except BaseException:
            self.stop()
            raise

    def autoscale(
        self,
        role: ScaledRole = "handler",
        service: str | None = None,
        *,
        least: int = 1,
        most: int = 4,
        up_above: float = 2.0,
        down_below: float = 0.5,
        **times: float,
    ) -> Autoscaling:
        """Add and remove workers of a role by its time lag, in the background; ``stop()`` ends it.

        Lags are in seconds; ``times``: ``hold`` and ``cool_down``, see ``autoscaler.Bounds``. The
        workers of ``start`` count, and stay. Raises ``UsageError`` if another has the role.
        """
        self._by_hand.close()
        ends: Any = {"least": least, "most": most, "up_above": up_above, "down_below": down_below}
        name = service or self.first
        self._scalers.append(Autoscaling(self.of, role, name, Bounds(**ends | times), started.say))
        if not self._in_block:
            started.keep(self)
        return self._scalers[-1]

    def stop(self) -> None:
        """Stop the worker processes."""
        started.forget(self)
        while self._scalers:
            self._scalers.pop().stop()
        workers, self._workers = self._workers, None
        self._driven = []
        if workers is not None:
            workers.stop()

    def workers(self) -> list[Alive]:
        """The worker processes that live now."""
        return self._workers.alive() if self._workers else []

    def check(self) -> None:
        """Raises ``Unreachable`` or ``StackError`` if a server or the supervisor is gone."""
        if self._workers is not None:
            self._workers.check()
        if self.servers is not None:
            stack.check(self.servers)

    def drive(self) -> None:
        """Called by who waits: in memory, do what workers would do; or step what is by hand."""
        if self._driven:
            for role in self._driven:
                for instance in self.instances_of(role):
                    self.by_hand(role, instance).step(0)
        elif self._stepping:
            self.by_hand("handler", self._stepping).step(0.1)
        elif time.monotonic() - self._looked > LOOK_SECONDS:  # a client only sees that time goes by
            self.check()
            self._looked = time.monotonic()

    def rebuild(self, view: str, *, anew: bool = False, batch_size: int = 4_000) -> Rebuild:
        """Begin to rebuild a view step by step, or go on with it; see ``Parts.rebuild``."""
        return self.parts.rebuild(view, anew=anew, batch_size=batch_size)

    def rebuild_view(self, view: str, keep: float = KEEP_SECONDS) -> Progress:
        """Rebuild a view while it serves, and let the new generation serve.

        The old one is kept for ``keep`` seconds, for those who are reading it.
        """
        with closing(self.rebuild(view)) as rebuild:
            progress = rebuild.run(keep, lambda _: self.check())
        self._by_hand.forget("projector", view.partition(".")[0])  # its next life is the new one
        return progress

    def module(self, name: str, service: str) -> Module:
        """The inbox of a business module; it hears what the notifier of the service tells."""
        return self.parts.module(name, service)

    @cached_property
    def streams(self) -> Streams:
        """Stream analysis beside this run (the extra ``streams``); its topics are made at once.

        Raises ``UsageError`` in memory, or if Quix Streams is not installed.
        """
        return self.parts.make_streams()

    # --- looking

    def peek(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """What a topic shows to a reader of committed records, and how many offsets it hides.

        Rows hold ``partition``, ``offset``, ``key`` and ``value`` (JSON, or bytes where it is not).
        What is hidden belongs to transactions that are still open.
        """
        source = self.positions.source(name)
        try:
            records, hidden = peek(source, STUCK_SECONDS if self.backend == "kafka" else 0.0)
        finally:
            source.close()
        return [row(record) for record in records], hidden

    def topic(self, name: str) -> pd.DataFrame:
        """What a topic holds: one row a record (partition, offset, key, value)."""
        import pandas as pd

        return pd.DataFrame(self.peek(name)[0], columns=["partition", "offset", "key", "value"])

    def history(self, stream: str, service: str | None = None) -> pd.DataFrame:
        """What happened to a stream: one row an event, or a commit without one (a refusal, say).

        Columns: version, at, event, fields, command, outcome, reason.
        """
        import pandas as pd

        return pd.DataFrame(self.log(service).history(stream), columns=HISTORY)

    # --- dead letters

    def dead_letters(self, service: str | None = None) -> pd.DataFrame:
        """The parked streams, one row each; of all services, or of one.

        Worker processes save what they know some tenths of a second after they have decided.
        """
        import pandas as pd

        rows = [structs.asdict(letter) for letter in self.parked(service)]
        columns = ["service", "stream", "partition", "waiting", "since", "by", "reason"]
        return pd.DataFrame(rows, columns=columns)

    def parked(self, service: str | None = None) -> list[DeadLetter]:
        """The same, as they are: first those of the handlers, then those of the readers."""
        found: list[DeadLetter] = []
        for name in [service] if service else self.services:
            with closing(self.letters(name)) as letters:
                found += letters.parked()
        return found + [d for d in self.parts.held_back() if service in (None, d.service)]

    def dead_letter(self, stream: str, service: str | None = None) -> pd.DataFrame:
        """What waits in a parked stream, in order: one row a command, of the first 1,000.

        Columns: offset, id, command, body.
        """
        import pandas as pd

        with closing(self.letters(service or self.first)) as letters:
            rows = [structs.asdict(command) for command in letters.waiting(stream)]
        return pd.DataFrame(rows, columns=list(Waiting.__struct_fields__))

    def replay(self, stream: str, service: str | None = None) -> Answer:
        """Let a parked stream go on with all that waits in it."""
        return self._release(stream, service or self.first, drop=False)

    def drop_dead_letter(self, stream: str, service: str | None = None) -> Answer:
        """Let a parked stream go on without the first command that waits in it."""
        return self._release(stream, service or self.first, drop=True)

    def _release(self, stream: str, service: str, drop: bool) -> Answer:
        """Where the handler is stepped by hand, it is stepped until it has answered."""
        self._stepping = service if ("handler", service) in self._by_hand else None
        try:
            with closing(self.letters(service)) as letters:
                return letters.release(stream, drop=drop)
        finally:
            self._stepping = None

    def letters(self, service: str) -> DeadLetters:
        """The dead letters of a service; close them. Its handler by hand saves what it knows."""
        found = self.of.service(service)
        if ("handler", service) in self._by_hand:
            self.by_hand("handler", service).flush()
        topic = self.topic_name(f"{service}.commands")
        return DeadLetters(
            found,
            self.store,
            self.log_broker.source(topic),
            topic,
            self.bus,
            self.log_broker.sender(),
        )

    def collection(self, name: str) -> pd.DataFrame:
        """What a collection holds, a view's in the generation that serves: one row a document."""
        import pandas as pd

        if name.endswith(".checkpoints"):
            return pd.DataFrame([msgspec.to_builtins(c) for c in self.store.checkpoints(name)])
        return pd.DataFrame(self.store.find(self.where(name), {}, [("_id", 1)]))

    def where(self, collection: str) -> str:
        """Where a collection is: one of a view, in the generation that serves."""
        views = {service.view for service in self.services.values()}
        name, _, rest = collection.rpartition(".")
        of_view = name in views and "@" not in rest
        return Serving(self.store).collection(collection) if of_view else collection

    def lag(self, role: str, service: str) -> int:
        """How many offsets the group of a role is behind; transaction markers count too."""
        return self.positions.lag(role, service)

    def ends(self, name: str) -> dict[int, int]:
        """The high watermarks of a topic (``orders.events``); see ``Positions.ends``."""
        return self.positions.ends(name)

    def _watermarks(self, service: str) -> dict[int, int]:
        """Of the events, where they are kept: a relay may be behind the MongoDB log."""
        return self.positions.ends(f"{service}.events")

    def server_versions(self) -> dict[str, str]:
        """Of Kafka and MongoDB."""
        return {"kafka": self.broker.version(), "mongodb": self.store.version()}

    def ignored_commits(self) -> int:
        """Commits that a reader ignored because their version did not fit: each a lost write."""
        return sum(checkpoint.ignored for checkpoint in self.positions.checkpoints())

    def film(self, stream: str, service: str | None = None) -> Film:
        """The way of a stream's newest message: command, partition, commit, view."""
        from labkit.plots.film import Film, Trace

        name = service or self.first
        where = Serving(self.store).collection(streams_of(self.of.service(name)))
        document = self.store.load(where, [stream]).get(stream)
        if document is None or "trace" not in document:
            raise UsageError(
                f"the view holds no {stream!r} with a trace; has its projector run since the last "
                "rebuild?"
            )
        sent, made = self.peek(f"{name}.commands")[0], self.peek(f"{name}.events")[0]
        return Film(Trace.of(name, document, sent, made, self.partitions))

    # --- the end

    def _close_parts(self) -> None:
        self._by_hand.close()
        while self._event_logs:
            self._event_logs.popitem()[1].close()
        self.positions.close()

    def close(self) -> None:
        """Stop the workers, let go of connections and servers; see ``stack.borrow``."""
        self.stop()
        self._close_parts()
        for end in ("bus", "query_bus"):
            if (made := self.__dict__.pop(end, None)) is not None:
                made.close()
        self.of.close()

    def drop(self) -> None:
        """Delete the run's topics and database, then close."""
        self.stop()
        self._close_parts()
        self.broker.drop([topic for topic in self.broker.topics() if self.of.owns(topic)])
        shutil.rmtree(self.of.streams_folder(), ignore_errors=True)
        self.store.drop()
        self.close()

    def __repr__(self) -> str:
        names = ", ".join((*self.services, *self.processes)) or "no service"
        return f"<lab {self.name!r} on {self.backend}: run {self.run!r} of {names}>"

    def __enter__(self) -> Lab:
        self._in_block = True
        started.forget(self)  # its workers end with the block
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


__all__ = ["Crashed", "Lab"]
