"""One run: its names, its connections, and how its parts are wired. The only place that wires.

A :class:`Run` is all that a worker process needs; a ``Lab`` (``lab.py``) is a run with the tools of
a notebook around it.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import structlog

from labkit import snapshots, stack
from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_store import MemoryStore
from labkit.contexts import CONTEXTS
from labkit.domain.fulfilment import PROCESSES, Fulfilment, Process
from labkit.errors import Unreachable, UsageError
from labkit.generations import named, serving
from labkit.handlers import Handler, Recovered
from labkit.ports import Broker, Sender, Store
from labkit.projections import PARKED_INDEX, Projection, Projector, parked_in
from labkit.rebuild import Rebuild
from labkit.relay import Log as Publisher
from labkit.relay import Relay
from labkit.runtime import Worker, read_registry
from labkit.sagas import Saga, SagaOutbox, SagaProjection
from labkit.settings import DEFAULTS, Settings
from labkit.views import PROJECTIONS

if TYPE_CHECKING:
    from labkit.streams import Streams

Role = Literal["handler", "relay", "projector", "saga"]
ROLES: tuple[Role, ...] = get_args(Role)


class Reader(NamedTuple):
    """Where the checkpoints of a part are, by partition: ids are ``name:partition``."""

    topic: str
    checkpoints: str
    name: str

    @property
    def context(self) -> str:
        """Whose topic it reads."""
        return self.topic.partition(".")[0]

    @property
    def parked(self) -> str:
        """The collection of the streams that it holds back; of a handler there is none."""
        name, _, generation = self.name.partition("@")
        return named(parked_in(name), int(generation or 0))


class Run:
    """The names and connections of one run.

    Args:
        name: of the servers (``labkit up --lab NAME``).
        backend: ``kafka`` (real Kafka and MongoDB) or ``memory``.
        run: joins an existing run; the default is a new one with topics and a database of its own.
        contexts: which services take part.
        sagas: which processes run between them; the services they need take part, too.
        start: start servers that are not up; otherwise that is ``Unreachable``.
        report: is given a line for each step of starting servers.
        settings: how its parts work.

    Raises ``UsageError`` for an unknown value and ``StackError`` where servers cannot be had.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        backend: str = "kafka",
        run: str | None = None,
        contexts: Sequence[str] = ("orders", "catalog"),
        sagas: Sequence[str] = (),
        start: bool = True,
        report: Callable[[str], None] = lambda _: None,
        settings: Settings = DEFAULTS,
    ) -> None:
        if backend not in ("kafka", "memory"):
            raise UsageError(f"backend must be 'kafka' or 'memory', got {backend!r}")
        if unknown := set(contexts) - set(CONTEXTS):
            raise UsageError(f"unknown context {unknown.pop()!r}; known: {', '.join(CONTEXTS)}")
        if unknown := set(sagas) - set(PROCESSES):
            raise UsageError(f"unknown saga {unknown.pop()!r}; known: {', '.join(PROCESSES)}")
        self.settings = settings.check()
        if backend == "memory" and settings.log != "kafka":
            raise UsageError(f"in memory there is one log; got log={settings.log!r}")
        self.name = name
        self.run = run or f"r{uuid.uuid4().hex[:7]}"
        self.backend = backend
        self.sagas = tuple(sagas)
        needed = [source for saga in sagas for source in PROCESSES[saga].sources]
        self.contexts = tuple(dict.fromkeys([*contexts, *needed]))
        self.servers: stack.Servers | None = None
        self._started_servers = False
        self.broker: Broker  # where views, sagas and clients read the commits
        self.log_broker: Broker  # where commands and commits are kept: the same, or MongoDB
        self.store: Store
        try:
            if backend == "memory":
                self.broker = self.log_broker = MemoryBroker()
                self.store = MemoryStore()
            else:
                self._connect(report, start)
            if run is None:
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self, report: Callable[[str], None], start: bool) -> None:
        from labkit.adapters.mongo import MongoStore

        # A worker goes where it is told to, whatever the state of a lab on this host says.
        self.servers = (None if start else stack.given(self.name)) or stack.running(self.name)
        if self.servers is None and not start:
            raise Unreachable(f"the servers of lab {self.name!r} are not up; run `labkit up`")
        if self.servers is None:
            self.servers = stack.up(self.name, report=report)
            self._started_servers = self.servers.kind == "native"
        if self.settings.client == "confluent":
            from labkit.adapters.confluent import ConfluentBroker

            self.broker = ConfluentBroker(self.servers.bootstrap)
        else:
            from labkit.adapters.kafka_python import KafkaPythonBroker

            self.broker = KafkaPythonBroker(self.servers.bootstrap)
        database = f"{self.name}_{self.run}"
        self.store = MongoStore(self.servers.mongo_uri, database)
        self.log_broker = self.broker
        if self.settings.log == "mongodb":
            from labkit.adapters.mongo_log import MongoBroker

            self.log_broker = MongoBroker(self.servers.mongo_uri, database)

    def _prepare(self) -> None:
        events, commands = (
            {self.topic_name(f"{c}.{kind}"): self.settings.partitions for c in self.contexts}
            for kind in ("events", "commands")
        )
        self.log_broker.create(events | commands)
        if self.log_broker is not self.broker:
            self.broker.create(events)
        # Collections exist before the first transaction: creating one inside is slow.
        for context in self.contexts:
            for field in ("waiting", "dead"):
                self.store.index(CONTEXTS[context].states, [(field, 1)], sparse=True)
            self.store.index(CONTEXTS[context].checkpoints, [("_id", 1)])
            self.store.index(CONTEXTS[context].snapshots, snapshots.INDEX)
            self.prepare(PROJECTIONS[context])
        for saga in self.sagas:
            self.store.index(f"{saga}.checkpoints", [("_id", 1)])
            for projection in self._saga_projections(saga):
                self.prepare(projection)

    def prepare(self, projection: Projection, generation: int = 0) -> None:
        """Make sure of the collections of a projection, and of their indexes."""
        self.store.index(named(parked_in(projection.name), generation), PARKED_INDEX)
        for collection, indexes in projection.indexes.items():
            for keys in indexes or [[("_id", 1)]]:
                self.store.index(named(collection, generation), keys)

    @property
    def client(self) -> str:
        """The Kafka client."""
        return self.settings.client

    @property
    def partitions(self) -> int:
        """Of each topic."""
        return self.settings.partitions

    # --- names

    def topic_name(self, name: str) -> str:
        """``orders.commands`` -> ``<lab>.<run>.orders.commands``."""
        return f"{self.name}.{self.run}.{name}"

    def group(self, role: str, context: str) -> str:
        """The consumer group of a role."""
        return self.topic_name(f"{context}.{role}")

    def hosts(self, role: str) -> tuple[str, ...]:
        """What the workers of a role are named after: contexts, or sagas."""
        if role == "relay" and self.log_broker is self.broker:
            return ()
        return self.sagas if role == "saga" else self.contexts

    def readers(self, role: str, context: str) -> list[Reader]:
        """What the workers of a role read."""
        if role == "handler":
            states = CONTEXTS[context].states
            return [Reader(f"{context}.commands", CONTEXTS[context].checkpoints, states)]
        if role == "projector":
            name = named(PROJECTIONS[context].name, self.serving(context))
            return [Reader(f"{context}.events", CONTEXTS[context].checkpoints, name)]
        if role == "relay":
            return []
        return [
            Reader(f"{p.context}.events", f"{context}.checkpoints", p.name)
            for p in self._saga_projections(context)
        ]

    def serving(self, context: str) -> int:
        """The generation of a context's view that serves."""
        checkpoints = self.store.checkpoints(CONTEXTS[context].checkpoints)
        return serving(checkpoints, PROJECTIONS[context].name)

    def _saga_projections(self, saga: str) -> list[SagaProjection]:
        process: Process = PROCESSES[saga]
        if isinstance(process, Fulfilment):
            process = Fulfilment(self.settings.pay_within)
        return [SagaProjection(process, source) for source in process.sources]

    def broker_of(self, name: str) -> Broker:
        """Where a topic is to be read: commands where they are kept, events where all read them."""
        return self.log_broker if name.endswith(".commands") else self.broker

    # --- parts

    def make(self, worker: Worker, report: Callable[[Recovered], None] = lambda _: None) -> Any:
        """Wire one part; ``report`` is told what a handler's take-overs took."""
        if worker.role not in ROLES:
            raise UsageError(f"role must be one of {', '.join(ROLES)}, got {worker.role!r}")
        if worker.role == "saga":
            return self._make_saga(worker.context)
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
                report=report,
            )
        if worker.role == "relay":
            if not isinstance(self.log_broker, Publisher):
                raise UsageError("a relay is for log='mongodb'; this run's log is Kafka")
            return Relay(self.log_broker, self.broker, events)
        return self._projector(worker.context, self.serving(worker.context), group)

    def _projector(self, context: str, generation: int, group: str | None) -> Projector:
        """Of a view: as a member of a group, or beside it."""
        return Projector(
            PROJECTIONS[context],
            CONTEXTS[context].codec,
            self.broker.source(self.topic_name(f"{context}.events"), group),
            self.store,
            CONTEXTS[context].checkpoints,
            generation=generation,
        )

    def rebuild(self, view: str, *, anew: bool = False) -> Rebuild:
        """Begin to build a view anew, or go on with it; ``anew``: drop what was built so far.

        Raises ``UsageError`` for a view that this run has not.
        """
        views = {PROJECTIONS[context].name: context for context in self.contexts}
        if (context := views.get(view)) is None:
            raise UsageError(f"view must be one of {', '.join(sorted(views))}, got {view!r}")
        checkpoints = CONTEXTS[context].checkpoints

        def build(generation: int) -> Projector:
            self.prepare(PROJECTIONS[context], generation)
            return self._projector(context, generation, None)

        def begin() -> Rebuild:
            return Rebuild(PROJECTIONS[context], self.store, checkpoints, build)

        if anew:
            before = begin()
            before.discard()
            before.close()
        return begin()

    def reader(self, name: str) -> Projector:
        """One of ``readers``, in no group: for replays. Raises ``UsageError`` where it is not."""
        known = {PROJECTIONS[c].name: c for c in self.contexts}
        if (context := known.get(name)) is not None:
            return self._projector(context, self.serving(context), None)
        for saga in self.sagas:
            for projection in self._saga_projections(saga):
                if projection.name == name:
                    return self._saga_projector(saga, projection, self.log_broker.sender(), None)
                known[projection.name] = saga
        raise UsageError(f"no reader {name!r} in run {self.run!r}; there are {', '.join(known)}")

    def _make_saga(self, saga: str) -> Saga:
        sender = self.log_broker.sender()
        projectors = [
            self._saga_projector(saga, p, sender, self.group("saga", p.name))
            for p in self._saga_projections(saga)
        ]
        return Saga(projectors, sender, lambda: self.store.checkpoints(f"{saga}.checkpoints"))

    def _saga_projector(
        self, saga: str, projection: SagaProjection, sender: Sender, group: str | None
    ) -> Projector:
        checkpoints = f"{saga}.checkpoints"
        return Projector(
            projection,
            CONTEXTS[projection.context].codec,
            self.broker.source(self.topic_name(f"{projection.context}.events"), group),
            self.store,
            checkpoints,
            outbox=SagaOutbox(
                projection,
                self.store,
                checkpoints,
                sender,
                lambda context: self.topic_name(f"{context}.commands"),
            ),
            refusals=True,
        )

    def worker_command(self, worker: Worker) -> list[str]:
        """The command line of a worker of this run."""
        return [
            *(sys.executable, "-m", "labkit", "run", worker.role),
            *("--lab", self.name, "--run", self.run, "--context", worker.context),
            *("--slot", str(worker.slot)),
            *self.settings.options(),
        ]

    def environment(self) -> dict[str, str]:
        """The environment of a worker of this run: addresses may hold a password."""
        assert self.servers is not None, "a lab in memory has no worker processes"
        return {
            **os.environ,
            "LABKIT_HOME": str(stack.home()),
            "LABKIT_BOOTSTRAP": self.servers.bootstrap,
            "LABKIT_MONGO_URI": self.servers.mongo_uri,
        }

    @cached_property
    def streams(self) -> Streams:
        """Stream analysis beside this run (the extra ``streams``); its topics are made at once.

        Raises ``UsageError`` in memory, or where Quix Streams is not installed.
        """
        if self.servers is None:
            raise UsageError("streams run on real Kafka only; use backend='kafka'")
        try:
            from labkit.streams import Streams
        except ImportError as error:
            raise UsageError(f"{error}; install cqrs-labkit[streams]") from error
        streams = Streams(
            self.servers.bootstrap,
            self.topic_name("streams."),
            self.broker,
            self.store,
            self.partitions,
            self.streams_folder(),
        )
        streams.prepare()
        return streams

    def streams_folder(self) -> Path:
        """Where the pipelines of this run keep their states as long as they run."""
        return runs_folder(self.name) / f"{self.run}.streams"

    def owns(self, topic: str) -> bool:
        """Whether a topic is of this run: one of its own, or what Quix keeps of a state in it."""
        return topic.removeprefix("changelog__").startswith(self.topic_name(""))

    def registry(self) -> Path:
        """The file that names the workers of this run."""
        return runs_folder(self.name) / f"{self.run}.json"

    def logs(self) -> Path:
        """Where workers write their logs."""
        return stack.home() / "labs" / self.name / "logs"

    def close(self) -> None:
        """Let go of connections."""
        for end in ("broker", "log_broker", "store"):
            if hasattr(self, end):
                getattr(self, end).close()


def runs_folder(name: str) -> Path:
    """Where the registries of a lab's runs are."""
    return stack.home() / "labs" / name / "runs"


def running_runs(name: str) -> list[str]:
    """The runs of a lab that have live workers."""
    folder = runs_folder(name)
    if not folder.is_dir():
        return []
    return [path.stem for path in sorted(folder.glob("r*.json")) if read_registry(path)]


def _log_recovery(recovered: Recovered) -> None:
    structlog.get_logger().info(
        "recovered",
        partition=recovered.partition,
        commits=recovered.commits,
        seconds=round(recovered.seconds, 3),
    )


def make_worker(
    name: str, run: str, settings: Settings, worker: Worker
) -> tuple[Run, Callable[[], Any]]:
    """What ``labkit run ROLE`` needs: the run it belongs to, and how to make its part."""
    if worker.role == "saga":
        joined = Run(
            name, run=run, contexts=[], sagas=[worker.context], start=False, settings=settings
        )
    else:
        joined = Run(name, run=run, contexts=[worker.context], start=False, settings=settings)
    return joined, lambda: joined.make(worker, _log_recovery)
