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
from labkit.services.contexts import CONTEXTS
from labkit.services.notices import NOTICES
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
        if worker.role == "saga":
            return self._make_saga(worker.context)
        if worker.role == "notifier":
            return self._make_notifier(worker.context)
        if worker.role == "query":
            return self._make_query_handler(worker)
        context = CONTEXTS[worker.context]
        commands, events = (
            self.topic_name(f"{worker.context}.{kind}") for kind in ("commands", "events")
        )
        group = self.group(worker.role, worker.context)
        if worker.role == "handler":
            return Handler(
                context,
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
        return self._projector(worker.context, self.serving(worker.context), group)

    def _projector(
        self, context: str, generation: int, group: str | None, batch_size: int = 4_000
    ) -> Projector:
        """Of a view: as a member of a group, or beside it."""
        return Projector(
            PROJECTIONS[context],
            CONTEXTS[context].codec,
            self.broker.source(self.topic_name(f"{context}.events"), group),
            self.view_store,
            CONTEXTS[context].checkpoints,
            batch_size=batch_size,
            generation=generation,
        )

    def rebuild(self, view: str, *, anew: bool = False, batch_size: int = 4_000) -> Rebuild:
        """Begin to build a view anew, or go on with it; ``anew``: drop what was built so far.

        ``batch_size`` is how many commits a step takes at most. Raises ``UsageError`` for a view
        that this run has not.
        """
        views = {PROJECTIONS[context].name: context for context in self.contexts}
        if (context := views.get(view)) is None:
            raise UsageError(f"view must be one of {', '.join(sorted(views))}, got {view!r}")
        checkpoints = CONTEXTS[context].checkpoints

        def build(generation: int) -> Projector:
            self.prepare(PROJECTIONS[context], generation)
            return self._projector(context, generation, None, batch_size)

        def begin() -> Rebuild:
            return Rebuild(PROJECTIONS[context], self.store, checkpoints, build)

        if anew:
            before = begin()
            before.discard()
            before.close()
        return begin()

    def query_topics(self, context: str) -> tuple[str, str]:
        """Queries and results of a context; they are made when somebody needs them."""
        queries, results = (self.topic_name(f"{context}.{kind}") for kind in ("queries", "results"))
        self.broker.create({queries: self.partitions, results: self.partitions})
        return queries, results

    def _make_query_handler(self, worker: Worker) -> QueryHandler:
        queries, results = self.query_topics(worker.context)
        group = self.group("query", worker.context)

        def events(context: str) -> Source:
            return self.log_broker.source(self.topic_name(f"{context}.events"))

        watermarks = Watermarks(events)
        return QueryHandler(
            worker.context,
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
        for context in self.contexts:
            self.query_topics(context)
        return QueryBus(
            self.contexts,
            self.topic_name,
            self.broker.sender(),
            lambda context: self.broker.source(self.topic_name(f"{context}.results")),
            pump=pump,
        )

    def reader(self, name: str) -> Projector:
        """One of ``readers``, in no group: for replays. Raises ``UsageError`` where it is not."""
        known = {PROJECTIONS[c].name: c for c in self.contexts}
        if (context := known.get(name)) is not None:
            return self._projector(context, self.serving(context), None)
        for saga in self.sagas:
            for projection in self.saga_projections(saga):
                if projection.name == name:
                    return self._saga_projector(saga, projection, self.log_broker.sender(), None)
                known[projection.name] = saga
        for context in self.hosts("notifier"):
            if f"{context}.notices" == name:
                return self._notifier(context, self.broker.sender(), None)
        raise UsageError(f"no reader {name!r} in run {self.run!r}; there are {', '.join(known)}")

    def held_back(self) -> list[DeadLetter]:
        """The streams that readers have parked."""
        return [
            letter
            for role in ("projector", "saga", "notifier")
            for host in self.hosts(role)
            for reader in self.readers(role, host)
            for letter in parked_by(self.store, reader.name, reader.context, reader.parked)
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

    def _make_saga(self, saga: str) -> ProcessManager:
        sender = self.log_broker.sender()
        projectors = [
            self._saga_projector(saga, p, sender, self.group("saga", p.name))
            for p in self.saga_projections(saga)
        ]
        return ProcessManager(
            projectors, sender, lambda: self.store.checkpoints(f"{saga}.checkpoints")
        )

    def _make_notifier(self, context: str) -> ProcessManager:
        """It runs like a process with one side, and what it sends are notices."""
        sender = self.broker.sender()
        projector = self._notifier(context, sender, self.group("notifier", context))
        return ProcessManager(
            [projector], sender, lambda: self.store.checkpoints(f"{context}.notices.checkpoints")
        )

    def _notifier(self, context: str, sender: Sender, group: str | None) -> Projector:
        notifier = Notifier(context, NOTICES[context])
        topic = self.topic_name(notifier.name)
        self.broker.create({topic: self.partitions})
        self.prepare(notifier)
        checkpoints = f"{notifier.name}.checkpoints"
        box = Outbox(notifier, self.store, checkpoints, sender, lambda _: topic)
        return self._with_box(notifier, context, group, checkpoints, box)

    def module(self, name: str, context: str) -> Module:
        """The inbox of a business module; it hears what the notifier of the context tells."""
        topic = self.topic_name(f"{context}.notices")
        self.broker.create({topic: self.partitions})
        for collection in (f"{name}.inbox", f"{name}.checkpoints"):
            self.store.index(collection, [("_id", 1)])
        source = self.broker.source(topic, self.topic_name(f"{context}.{name}"))
        return Module(name, context, source, self.store)

    def _saga_projector(
        self, saga: str, projection: ProcessProjection, sender: Sender, group: str | None
    ) -> Projector:
        checkpoints = f"{saga}.checkpoints"

        def topic(context: str) -> str:
            return self.topic_name(f"{context}.commands")

        box = Outbox(projection, self.store, checkpoints, sender, topic)
        return self._with_box(projection, projection.context, group, checkpoints, box)

    def _with_box(
        self,
        projection: Projection,
        context: str,
        group: str | None,
        checkpoints: str,
        box: Outbox,
    ) -> Projector:
        source = self.broker.source(self.topic_name(f"{context}.events"), group)
        codec = CONTEXTS[context].codec
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
    if worker.role == "saga":
        joined = Parts(
            name, run=run, contexts=[], sagas=[worker.context], start=False, settings=settings
        )
    else:
        joined = Parts(name, run=run, contexts=[worker.context], start=False, settings=settings)
    return joined, lambda: joined.make(worker, _log_recovery, beside=True)
