"""The parts of a run: handlers, projectors, processes, notifiers. Wired here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import structlog

from labkit.errors import UsageError
from labkit.log.dead_letter import DeadLetter
from labkit.log.partition import Watermarks
from labkit.log.relay import Log as Publisher
from labkit.log.relay import Relay
from labkit.ports.broker import Sender, Source
from labkit.process.inbox import Module
from labkit.process.notifier import Notifier
from labkit.process.outbox import Outbox
from labkit.process.process_manager import ProcessManager, ProcessProjection
from labkit.query.bus import QueryBus
from labkit.query.handler import QueryHandler
from labkit.read.parking import parked_by
from labkit.read.projection import Projection
from labkit.read.projector import Projector
from labkit.read.queries import Queries
from labkit.read.rebuild import Rebuild
from labkit.run.run import ROLES, Run
from labkit.run.settings import Settings
from labkit.run.worker import Worker
from labkit.services.notices import NOTICES
from labkit.services.services import CONTEXTS
from labkit.services.views import PROJECTIONS
from labkit.write.handler import Handler, Recovered


class Parts(Run):
    """A run, and how each of its parts is made."""

    def make(
        self,
        worker: Worker,
        report: Callable[[Recovered], None] = lambda _: None,
        *,
        beside: bool = False,
    ) -> Any:
        """Wire one part; ``report`` and ``beside`` are a handler's."""
        if worker.role not in ROLES:
            raise UsageError(f"role must be one of {', '.join(ROLES)}, got {worker.role!r}")
        if worker.role == "process":
            return self._make_process(worker.service)
        if worker.role == "notifier":
            return self._make_notifier(worker.service)
        if worker.role == "query":
            return self._make_query_handler(worker)
        service = CONTEXTS[worker.service]
        commands, events = (
            self.topic_name(f"{worker.service}.{kind}") for kind in ("commands", "events")
        )
        group = self.group(worker.role, worker.service)
        if worker.role == "handler":
            return Handler(
                service,
                self.log_broker.log(
                    commands, events, group, f"{group}-{worker.slot}", self.settings.delivery
                ),
                self.store,
                batch_size=self.settings.batch_size,
                linger=self.settings.linger,
                beside=beside,
                report=report,
            )
        if worker.role == "relay":
            if not isinstance(self.log_broker, Publisher):
                raise UsageError("a relay is for log='mongodb'; this run's log is Kafka")
            return Relay(self.log_broker, self.broker, events)
        return self._projector(worker.service, self.serving(worker.service), group)

    def _projector(
        self, service: str, generation: int, group: str | None, batch_size: int = 4_000
    ) -> Projector:
        """Of a view: as a member of a group, or beside it."""
        return Projector(
            PROJECTIONS[service],
            CONTEXTS[service].codec,
            self.broker.source(self.topic_name(f"{service}.events"), group),
            self.view_store,
            CONTEXTS[service].checkpoints,
            batch_size=batch_size,
            generation=generation,
        )

    def rebuild(self, view: str, *, anew: bool = False, batch_size: int = 4_000) -> Rebuild:
        """Begin to build a view anew, or go on with it; ``anew``: drop what was built so far.

        ``batch_size`` is how many commits a step takes at most. Raises ``UsageError`` for a view
        that this run has not.
        """
        views = {PROJECTIONS[service].name: service for service in self.services}
        if (service := views.get(view)) is None:
            raise UsageError(f"view must be one of {', '.join(sorted(views))}, got {view!r}")
        checkpoints = CONTEXTS[service].checkpoints

        def build(generation: int) -> Projector:
            self.prepare(PROJECTIONS[service], generation)
            return self._projector(service, generation, None, batch_size)

        def begin() -> Rebuild:
            return Rebuild(PROJECTIONS[service], self.store, checkpoints, build)

        if anew:
            before = begin()
            before.discard()
            before.close()
        return begin()

    def query_topics(self, service: str) -> tuple[str, str]:
        """Queries and results of a service; they are made when somebody needs them."""
        queries, results = (self.topic_name(f"{service}.{kind}") for kind in ("queries", "results"))
        self.broker.create({queries: self.partitions, results: self.partitions})
        return queries, results

    def _make_query_handler(self, worker: Worker) -> QueryHandler:
        queries, results = self.query_topics(worker.service)
        group = self.group("query", worker.service)

        def events(service: str) -> Source:
            return self.log_broker.source(self.topic_name(f"{service}.events"))

        watermarks = Watermarks(events)
        return QueryHandler(
            worker.service,
            self.broker.log(queries, results, group, f"{group}-{worker.slot}", "at_least_once"),
            results,
            self.partitions,
            self.broker.sender(),
            Queries(self.store, ends=watermarks),
            self.store,
            cache=self.settings.cache,
            close=watermarks.close,
        )

    def make_query_bus(self, pump: Callable[[], None]) -> QueryBus:
        """A requester of this run's services."""
        for service in self.services:
            self.query_topics(service)
        return QueryBus(
            self.services,
            self.topic_name,
            self.broker.sender(),
            lambda service: self.broker.source(self.topic_name(f"{service}.results")),
            pump=pump,
        )

    def reader(self, name: str) -> Projector:
        """One of ``readers``, in no group: for replays. Raises ``UsageError`` where it is not."""
        known = {PROJECTIONS[c].name: c for c in self.services}
        if (service := known.get(name)) is not None:
            return self._projector(service, self.serving(service), None)
        for process in self.processes:
            for projection in self.process_projections(process):
                if projection.name == name:
                    return self._process_projector(
                        process, projection, self.log_broker.sender(), None
                    )
                known[projection.name] = process
        for service in self.hosts("notifier"):
            if f"{service}.notices" == name:
                return self._notifier(service, self.broker.sender(), None)
        raise UsageError(f"no reader {name!r} in run {self.run!r}; there are {', '.join(known)}")

    def held_back(self) -> list[DeadLetter]:
        """The streams that readers have parked."""
        return [
            letter
            for role in ("projector", "process", "notifier")
            for host in self.hosts(role)
            for reader in self.readers(role, host)
            for letter in parked_by(self.store, reader.name, reader.service, reader.parked)
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
        sender = self.log_broker.sender()
        projectors = [
            self._process_projector(process, p, sender, self.group("process", p.name))
            for p in self.process_projections(process)
        ]
        return ProcessManager(
            projectors, sender, lambda: self.store.checkpoints(f"{process}.checkpoints")
        )

    def _make_notifier(self, service: str) -> ProcessManager:
        """It runs like a process with one side, and what it sends are notices."""
        sender = self.broker.sender()
        projector = self._notifier(service, sender, self.group("notifier", service))
        return ProcessManager(
            [projector], sender, lambda: self.store.checkpoints(f"{service}.notices.checkpoints")
        )

    def _notifier(self, service: str, sender: Sender, group: str | None) -> Projector:
        notifier = Notifier(service, NOTICES[service])
        topic = self.topic_name(notifier.name)
        self.broker.create({topic: self.partitions})
        self.prepare(notifier)
        checkpoints = f"{notifier.name}.checkpoints"
        box = Outbox(notifier, self.store, checkpoints, sender, lambda _: topic)
        return self._with_box(notifier, service, group, checkpoints, box)

    def module(self, name: str, service: str) -> Module:
        """The inbox of a business module; it hears what the notifier of the service tells."""
        topic = self.topic_name(f"{service}.notices")
        self.broker.create({topic: self.partitions})
        for collection in (f"{name}.inbox", f"{name}.checkpoints"):
            self.store.index(collection, [("_id", 1)])
        source = self.broker.source(topic, self.topic_name(f"{service}.{name}"))
        return Module(name, service, source, self.store)

    def _process_projector(
        self, process: str, projection: ProcessProjection, sender: Sender, group: str | None
    ) -> Projector:
        checkpoints = f"{process}.checkpoints"

        def topic(service: str) -> str:
            return self.topic_name(f"{service}.commands")

        box = Outbox(projection, self.store, checkpoints, sender, topic)
        return self._with_box(projection, projection.service, group, checkpoints, box)

    def _with_box(
        self,
        projection: Projection,
        service: str,
        group: str | None,
        checkpoints: str,
        box: Outbox,
    ) -> Projector:
        source = self.broker.source(self.topic_name(f"{service}.events"), group)
        codec = CONTEXTS[service].codec
        return Projector(
            projection, codec, source, self.store, checkpoints, outbox=box, refusals=True
        )


def _log_recovery(recovered: Recovered) -> None:
    structlog.get_logger().info(
        "recovered",
        partition=recovered.partition,
        commits=recovered.commits,
        seconds=round(recovered.seconds, 3),
    )


def make_worker(
    name: str, run: str, settings: Settings, worker: Worker
) -> tuple[Parts, Callable[[], Any]]:
    """What ``labkit run ROLE`` needs: the run it belongs to, and how to make its part."""
    if worker.role == "process":
        joined = Parts(
            name, run=run, services=[], processes=[worker.service], start=False, settings=settings
        )
    else:
        joined = Parts(name, run=run, services=[worker.service], start=False, settings=settings)
    return joined, lambda: joined.make(worker, _log_recovery, beside=True)
