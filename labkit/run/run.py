"""One run: its names and its connections.

With its parts (``parts.py``) it is all that a worker process needs; a ``Lab`` (``lab.py``) has the
tools of a notebook around both.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from labkit import stack
from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_store import MemoryStore
from labkit.errors import Unreachable, UsageError
from labkit.log import snapshots
from labkit.ports.broker import Broker
from labkit.ports.store import Store
from labkit.process.process_manager import ProcessProjection
from labkit.read.generations import named, serving
from labkit.read.projection import PARKED_INDEX, Projection, parked_in
from labkit.run.settings import DEFAULTS, Settings
from labkit.run.worker import Worker
from labkit.services.fulfilment import PROCESSES, Fulfilment, Process
from labkit.services.notices import NOTICES
from labkit.services.services import CONTEXTS
from labkit.services.views import PROJECTIONS

if TYPE_CHECKING:
    from labkit.streams.streams import Streams
from labkit.run.registry import runs_folder

Role = Literal["handler", "relay", "projector", "process", "notifier", "query"]


ROLES: tuple[Role, ...] = get_args(Role)


class Reader(NamedTuple):
    """Where the checkpoints of a part are, by partition: ids are ``name:partition``."""

    topic: str
    checkpoints: str
    name: str

    @property
    def service(self) -> str:
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
        services: which services take part.
        processes: which processes run between them; the services they need take part, too.
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
        services: Sequence[str] = ("orders", "catalog"),
        processes: Sequence[str] = (),
        start: bool = True,
        report: Callable[[str], None] = lambda _: None,
        settings: Settings = DEFAULTS,
    ) -> None:
        if backend not in ("kafka", "memory"):
            raise UsageError(f"backend must be 'kafka' or 'memory', got {backend!r}")
        if unknown := set(services) - set(CONTEXTS):
            raise UsageError(f"unknown service {unknown.pop()!r}; known: {', '.join(CONTEXTS)}")
        if unknown := set(processes) - set(PROCESSES):
            raise UsageError(f"unknown process {unknown.pop()!r}; known: {', '.join(PROCESSES)}")
        self.settings = settings.check()
        if backend == "memory" and settings.log != "kafka":
            raise UsageError(f"in memory there is one log; got log={settings.log!r}")
        self.name = name
        self.run = run or f"r{uuid.uuid4().hex[:7]}"
        self.backend = backend
        self.processes = tuple(processes)
        needed = [source for process in processes for source in PROCESSES[process].sources]
        self.services = tuple(dict.fromkeys([*services, *needed]))
        self.servers: stack.Servers | None = None
        self._started_servers = False
        self.broker: Broker  # where views, processes and clients read the commits
        self.log_broker: Broker  # where commands and commits are kept: the same, or MongoDB
        self.store: Store
        self.view_store: Store  # the same, where projectors write with the run's write concern
        try:
            if backend == "memory":
                self.broker = self.log_broker = MemoryBroker()
                self.store = self.view_store = MemoryStore()
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
        self.store = self.view_store = MongoStore(self.servers.mongo_uri, database)
        if (concern := self.settings.write_concern) != DEFAULTS.write_concern:
            self.view_store = MongoStore(self.servers.mongo_uri, database, concern)
        self.log_broker = self.broker
        if self.settings.log == "mongodb":
            from labkit.adapters.mongo_log import MongoBroker

            self.log_broker = MongoBroker(self.servers.mongo_uri, database)

    def _prepare(self) -> None:
        events, commands = (
            {self.topic_name(f"{c}.{kind}"): self.settings.partitions for c in self.services}
            for kind in ("events", "commands")
        )
        self.log_broker.create(events | commands)
        if self.log_broker is not self.broker:
            self.broker.create(events)
        # Collections exist before the first transaction: creating one inside is slow.
        for service in self.services:
            for field in ("waiting", "dead"):
                self.store.index(CONTEXTS[service].states, [(field, 1)], sparse=True)
            self.store.index(CONTEXTS[service].checkpoints, [("_id", 1)])
            self.store.index(CONTEXTS[service].snapshots, snapshots.INDEX)
            self.prepare(PROJECTIONS[service])
        for process in self.processes:
            self.store.index(f"{process}.checkpoints", [("_id", 1)])
            for projection in self.process_projections(process):
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

    def group(self, role: str, service: str) -> str:
        """The consumer group of a role."""
        return self.topic_name(f"{service}.{role}")

    def hosts(self, role: str) -> tuple[str, ...]:
        """What the workers of a role are named after: services, or processes."""
        if role == "relay" and self.log_broker is self.broker:
            return ()
        if role == "notifier":
            return tuple(service for service in self.services if service in NOTICES)
        return self.processes if role == "process" else self.services

    def readers(self, role: str, service: str) -> list[Reader]:
        """What the workers of a role read."""
        if role == "handler":
            states = CONTEXTS[service].states
            return [Reader(f"{service}.commands", CONTEXTS[service].checkpoints, states)]
        if role == "projector":
            name = named(PROJECTIONS[service].name, self.serving(service))
            return [Reader(f"{service}.events", CONTEXTS[service].checkpoints, name)]
        if role in ("relay", "query"):
            return []
        if role == "notifier":
            name = f"{service}.notices"
            return [Reader(f"{service}.events", f"{name}.checkpoints", name)]
        return [
            Reader(f"{p.service}.events", f"{service}.checkpoints", p.name)
            for p in self.process_projections(service)
        ]

    def serving(self, service: str) -> int:
        """The generation of a service's view that serves."""
        checkpoints = self.store.checkpoints(CONTEXTS[service].checkpoints)
        return serving(checkpoints, PROJECTIONS[service].name)

    def process_projections(self, name: str) -> list[ProcessProjection]:
        """A process, for each of the services that it listens to."""
        process: Process = PROCESSES[name]
        if isinstance(process, Fulfilment):
            process = Fulfilment(self.settings.pay_within)
        return [ProcessProjection(process, source) for source in process.sources]

    def broker_of(self, name: str) -> Broker:
        """Where a topic is to be read: commands where they are kept, events where all read them."""
        return self.log_broker if name.endswith(".commands") else self.broker

    # --- its workers and files

    def worker_command(self, worker: Worker) -> list[str]:
        """The command line of a worker of this run."""
        return [
            *(sys.executable, "-m", "labkit", "run", worker.role),
            *("--lab", self.name, "--run", self.run, "--service", worker.service),
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
            from labkit.streams.streams import Streams
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
        for end in ("broker", "log_broker", "store", "view_store"):
            if hasattr(self, end):
                getattr(self, end).close()
