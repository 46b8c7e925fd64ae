"""The parts of a run: handlers, projectors, processes, notifiers. Wired here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from labkit.errors import UsageError
from labkit.log.dead_letter import DeadLetter
from labkit.log.partition import Watermarks
from labkit.log.relay import Log as Publisher
from labkit.log.relay import Relay
from labkit.ports.broker import Sender, Source
from labkit.ports.world import REAL, World
from labkit.process.inbox import Module
from labkit.process.notifier import Notifier
from labkit.process.outbox import Outbox
from labkit.process.process_manager import ProcessManager, ProcessProjection
from labkit.query.bus import QueryBus
from labkit.query.handler import QueryHandler
from labkit.read.parking import parked_by
from labkit.read.projection import Projection, ServiceProjection
from labkit.read.projector import Projector
from labkit.read.queries import Queries
from labkit.read.rebuild import Rebuild
from labkit.run.jobs import jobs
from labkit.run.positions import Positions
from labkit.run.run import ROLES, Run
from labkit.run.scheduler import Scheduler
from labkit.run.worker import Worker
from labkit.write.handler import FLUSH_STREAMS, Handler
from labkit.write.take_over import Recovered

if TYPE_CHECKING:
    from labkit.streams.streams import Streams


class Parts:
    """How each part of a run is made."""

    def __init__(self, run: Run, world: World = REAL) -> None:
        self.run = run
        self.world = world

    def make(
        self,
        worker: Worker,
        report: Callable[[Recovered], None] = lambda _: None,
        halved: int = 0,
    ) -> Any:
        """Wire one part; ``report`` is a handler's, and its batches are ``halved`` so often."""
        if worker.role not in ROLES:
            raise UsageError(f"role must be one of {', '.join(ROLES)}, got {worker.role!r}")
        if worker.role == "relay" and not isinstance(self.run.log_broker, Publisher):
            raise UsageError("a relay is for log='mongodb'; this run's log is Kafka")
        if worker.service not in self.run.instances_of(worker.role):
            known = ", ".join(self.run.instances_of(worker.role)) or "none"
            raise UsageError(
                f"run {self.run.run!r} has no {worker.role} of {worker.service!r}: {known}"
            )
        if worker.role == "process":
            return self._make_process(worker.service)
        if worker.role == "notifier":
            return self._make_notifier(worker.service)
        if worker.role == "query":
            return self._make_query_handler(worker)
        if worker.role == "scheduler":
            positions, clock = Positions(self.run), self.world.clock
            found = jobs(self.run, positions, clock)
            return Scheduler(found, self.run.store, clock, positions.close)
        service = self.run.services[worker.service]
        commands, events = (
            self.run.topic_name(f"{worker.service}.{kind}") for kind in ("commands", "events")
        )
        group = self.run.group(worker.role, worker.service)
        if worker.role == "handler":
            log = self.run.log_broker.log(
                commands, events, group, f"{group}-{worker.slot}", self.run.settings.delivery
            )
            with _whole(log):
                return Handler(
                    service,
                    log,
                    self.run.store,
                    self.world.clock,
                    batch_size=max(1, self.run.settings.batch_size >> halved),
                    flush_streams=max(1, FLUSH_STREAMS >> halved),
                    linger=self.run.settings.linger,
                    executor=self.world.executor(),
                    report=report,
                )
        if worker.role == "relay":
            assert isinstance(self.run.log_broker, Publisher)
            return Relay(self.run.log_broker, self.run.broker, events)
        return self._projector(worker.service, self.run.serving(worker.service), group)

    def _projector(
        self,
        service: str,
        generation: int,
        group: str | None,
        batch_size: int = 4_000,
        *,
        live: bool = True,
    ) -> Projector:
        """Of a service's views: as a member of a group, or in none."""
        return Projector(
            ServiceProjection(self.run.services[service]),
            self.run.services[service].codec,
            self.run.broker.source(self.run.topic_name(f"{service}.events"), group),
            self.run.view_store,
            self.run.services[service].checkpoints,
            self.world.clock,
            batch_size=batch_size,
            generation=generation,
            live=live,
        )

    def rebuild(self, view: str, *, anew: bool = False, batch_size: int = 4_000) -> Rebuild:
        """Begin to build a view anew, or go on with it; ``anew``: drop what was built so far.

        ``batch_size`` is how many commits a step takes at most. Raises ``UsageError`` for a view
        that this run has not.
        """
        views = {found.view: name for name, found in self.run.services.items() if found.views}
        if (service := views.get(view)) is None:
            known = f"view must be one of {', '.join(sorted(views))}" if views else ""
            raise UsageError(f"{known or 'this run has no views'}, got {view!r}")
        checkpoints = self.run.services[service].checkpoints

        def build(generation: int) -> Projector:
            self.run.prepare(ServiceProjection(self.run.services[service]), generation)
            return self._projector(service, generation, None, batch_size, live=False)

        def begin() -> Rebuild:
            return Rebuild(
                ServiceProjection(self.run.services[service]),
                self.run.store,
                checkpoints,
                build,
                self.world.clock,
            )

        if anew:
            before = begin()
            before.discard()
            before.close()
        return begin()

    def query_topics(self, service: str) -> tuple[str, str]:
        """Queries and results of a service; they are made when somebody needs them."""
        queries, results = (
            self.run.topic_name(f"{service}.{kind}") for kind in ("queries", "results")
        )
        self.run.broker.create({queries: self.run.partitions, results: self.run.partitions})
        return queries, results

    def _make_query_handler(self, worker: Worker) -> QueryHandler:
        queries, results = self.query_topics(worker.service)
        group = self.run.group("query", worker.service)

        def events(service: str) -> Source:
            return self.run.log_broker.source(self.run.topic_name(f"{service}.events"))

        watermarks = Watermarks(events)
        log = self.run.broker.log(
            queries, results, group, f"{group}-{worker.slot}", "at_least_once"
        )
        with _whole(log):
            return QueryHandler(
                worker.service,
                log,
                results,
                self.run.partitions,
                self.run.broker.sender(),
                Queries(self.run.store, self.run.services, ends=watermarks, clock=self.world.clock),
                self.run.store,
                self.world.clock,
                cache=self.run.settings.cache,
                close=watermarks.close,
            )

    def make_query_bus(self, queries: Queries, drive: Callable[[], None]) -> QueryBus:
        """A requester of this run's services."""
        for service in self.run.services:
            self.query_topics(service)
        return QueryBus(
            queries,
            self.run.topic_name,
            self.run.broker.sender(),
            lambda service: self.run.broker.source(self.run.topic_name(f"{service}.results")),
            self.world.clock,
            self.world.ids,
            self.world.random,
            drive=drive,
        )

    def reader(self, name: str) -> Projector:
        """One of ``readers``, in no group: for replays. Raises ``UsageError`` where it is not."""
        known = {found.view: name for name, found in self.run.services.items() if found.views}
        if (service := known.get(name)) is not None:
            return self._projector(service, self.run.serving(service), None)
        for process in self.run.processes:
            for projection in self.run.process_projections(process):
                if projection.name == name:
                    return self._process_projector(
                        process, projection, self.run.log_broker.sender(), None
                    )
                known[projection.name] = process
        for service in self.run.instances_of("notifier"):
            if f"{service}.notices" == name:
                return self._notifier(service, self.run.broker.sender(), None)
        raise UsageError(
            f"no reader {name!r} in run {self.run.run!r}; there are {', '.join(known)}"
        )

    def held_back(self) -> list[DeadLetter]:
        """The streams that readers have parked."""
        return [
            letter
            for role in ("projector", "process", "notifier")
            for host in self.run.instances_of(role)
            for reader in self.run.readers(role, host)
            for letter in parked_by(self.run.store, reader.name, reader.service, reader.parked)
        ]

    def replay_reader(self, name: str, stream: str) -> int:
        """Let a reader go on with a stream that it holds back; how many commits it has applied.

        Raises ``UsageError`` where it does not, and ``Parked`` where it gets no further.
        """
        plain = name.partition("@")[0]
        held = {d.stream: d for d in self.held_back() if d.by.partition("@")[0] == plain}
        if (letter := held.get(stream)) is None:
            raise UsageError(f"{name} holds back no stream {stream!r}; see `labkit dead-letters`")
        with closing(self.reader(plain)) as reader:
            return reader.replay(letter.partition, stream)

    def _make_process(self, process: str) -> ProcessManager:
        sender = self.run.log_broker.sender()
        with ExitStack() as opened:
            opened.enter_context(_whole(sender))
            projectors = []
            for side in self.run.process_projections(process):
                group = self.run.group("process", side.name)
                projectors.append(self._process_projector(process, side, sender, group))
                opened.enter_context(_whole(projectors[-1]))
            return ProcessManager(
                projectors, sender, lambda: self.run.store.checkpoints(f"{process}.checkpoints")
            )

    def _make_notifier(self, service: str) -> ProcessManager:
        """It runs like a process with one side, and what it sends are notices."""
        sender = self.run.broker.sender()
        with _whole(sender):
            projector = self._notifier(service, sender, self.run.group("notifier", service))
        return ProcessManager(
            [projector],
            sender,
            lambda: self.run.store.checkpoints(f"{service}.notices.checkpoints"),
        )

    def _notifier(self, service: str, sender: Sender, group: str | None) -> Projector:
        notices = self.run.services[service].notices
        assert notices is not None
        notifier = Notifier(service, notices)
        topic = self.run.topic_name(notifier.name)
        self.run.broker.create({topic: self.run.partitions})
        self.run.prepare(notifier)
        checkpoints = f"{notifier.name}.checkpoints"
        box = Outbox(notifier, self.run.store, checkpoints, sender, lambda _: topic)
        return self._with_box(notifier, service, group, checkpoints, box)

    def make_streams(self) -> Streams:
        """Stream analysis beside this run; raises ``UsageError`` without servers or Quix."""
        run = self.run
        if run.servers is None:
            raise UsageError("streams run on real Kafka only; use backend='kafka'")
        try:
            from labkit.streams.streams import Streams
        except ImportError as error:
            raise UsageError(f"{error}; install cqrs-labkit[streams]") from error
        streams = Streams(
            run.servers.bootstrap,
            run.topic_name("streams."),
            run.broker,
            run.store,
            run.partitions,
            run.streams_folder(),
        )
        streams.prepare()
        return streams

    def module(self, name: str, service: str) -> Module:
        """The inbox of a business module; it hears what the notifier of the service tells."""
        topic = self.run.topic_name(f"{self.run.service(service).name}.notices")
        self.run.broker.create({topic: self.run.partitions})
        for collection in (f"{name}.inbox", f"{name}.checkpoints"):
            self.run.store.index(collection, [("_id", 1)])
        source = self.run.broker.source(topic, self.run.topic_name(f"{service}.{name}"))
        return Module(name, service, source, self.run.store)

    def _process_projector(
        self, process: str, projection: ProcessProjection, sender: Sender, group: str | None
    ) -> Projector:
        checkpoints = f"{process}.checkpoints"

        def topic(service: str) -> str:
            return self.run.topic_name(f"{service}.commands")

        box = Outbox(projection, self.run.store, checkpoints, sender, topic)
        return self._with_box(projection, projection.service, group, checkpoints, box)

    def _with_box(
        self,
        projection: Projection,
        service: str,
        group: str | None,
        checkpoints: str,
        box: Outbox,
    ) -> Projector:
        source = self.run.broker.source(self.run.topic_name(f"{service}.events"), group)
        codec = self.run.services[service].codec
        return Projector(
            projection,
            codec,
            source,
            self.run.store,
            checkpoints,
            self.world.clock,
            outbox=box,
            refusals=True,
        )


class _Closable(Protocol):
    def close(self) -> None: ...


@contextmanager
def _whole(end: _Closable) -> Iterator[None]:
    """Close what was opened for a part that is not made to its end: a member of a group that
    nobody polls would keep its partitions."""
    try:
        yield
    except BaseException:
        end.close()
        raise


def _log_recovery(recovered: Recovered) -> None:
    structlog.get_logger().info(
        "recovered",
        partition=recovered.partition,
        commits=recovered.commits,
        seconds=round(recovered.seconds, 3),
    )


def make_worker(
    lab: str, run: str, role: str, service: str | None, slot: int
) -> tuple[Worker, Run, Callable[[int], Any]]:
    """What ``labkit run ROLE`` needs: the worker, the run that it joins, and how to make its part.

    Raises ``UsageError`` if the run has no such part, or several and none is named.
    """
    joined = Run(lab, run=run, services=(), start=False)
    known = joined.instances_of(role)
    if service not in known and (service is not None or len(known) != 1):
        joined.close()
        problem = f"no {role} of {service!r}" if service else f"several parts {role!r}, or none"
        raise UsageError(
            f"run {run!r} has {problem}; name one of them by --service: "
            f"{', '.join(known) or 'none'}"
        )
    worker = Worker(role, service or known[0], slot)
    # A worker saves its states in a thread of its own, while it decides on the next batch.
    parts = Parts(joined, World(executor=lambda: ThreadPoolExecutor(1, "saver")))
    return worker, joined, lambda halved: parts.make(worker, _log_recovery, halved)
