"""One run: its names, its connections and its settings.

The settings are kept once, in the run's database, and written when the run is made. Whoever joins
the run reads them there::

    collection run   {_id: "settings", services, processes, settings, made}
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct, structs

from labkit import stack
from labkit.adapters.memory_mongo_log import in_memory
from labkit.errors import UsageError
from labkit.log import snapshots
from labkit.ports.broker import Broker
from labkit.ports.store import Store, Writes
from labkit.ports.world import REAL, World
from labkit.process.process_manager import ProcessProjection
from labkit.read.generations import named, serving
from labkit.read.projection import PARKED_INDEX, Projection, ServiceProjection, parked_in
from labkit.run import folds, references
from labkit.run.references import Reference
from labkit.run.registry import runs_folder
from labkit.run.settings import DEFAULTS, Settings
from labkit.run.worker import SAFE_PATH, Worker
from labkit.service import Process, Service, route

Role = Literal["handler", "relay", "projector", "process", "notifier", "query", "scheduler"]
ROLES: tuple[Role, ...] = get_args(Role)
#: The collection that holds the settings, and their id.
COLLECTION, SETTINGS_ID = "run", "settings"
RUN_NAME = re.compile("[a-z0-9]{1,32}")


class Stored(Struct, frozen=True):
    """The settings of a run, as its database keeps them."""

    services: list[Reference]
    processes: list[Reference]
    settings: Settings
    made: int = 0  # Unix milliseconds


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
        run: joins an existing run, with its services and settings; the default is a new one.
        services: the services of a new run: names, references or objects.
        processes: process managers between them, besides those that the services bring.
        start: start servers that are not up; otherwise that is ``Unreachable``.
        report: is given a line for each step of starting servers.
        settings: how its parts work, by name: see ``Settings``. Who joins a run chooses its Kafka
            client, and nothing else.

    Raises ``UsageError`` for an unknown value or run, and ``StackError`` if there are no servers.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        backend: str = "kafka",
        run: str | None = None,
        services: Sequence[str | Service],
        processes: Sequence[str | Process] = (),
        start: bool = True,
        report: Callable[[str], None] = lambda _: None,
        settings: Mapping[str, Any] | None = None,
        world: World = REAL,
    ) -> None:
        if backend not in ("kafka", "memory"):
            raise UsageError(f"backend must be 'kafka' or 'memory', got {backend!r}")
        if backend == "kafka" and name == "memory":
            raise UsageError("no servers are named 'memory'; is Lab(backend='memory') meant?")
        if backend == "memory" and run is not None:
            raise UsageError(f"a run in memory ends with its lab and cannot be joined, got {run!r}")
        if run is not None and not RUN_NAME.fullmatch(run):
            raise UsageError(f"lab {name!r} has no run {run!r}: a run is named like r0a1b2c3")
        self.name = name
        self._clock = world.clock
        self.run = run or f"r{world.ids()[:7]}"
        self.backend = backend
        given = dict(settings or {})
        if run is not None and set(given) - {"client"}:
            raise UsageError(
                f"run {run!r} has its settings already; leave out {', '.join(sorted(given))}"
            )
        self.settings = Settings.of(given)
        self.services: dict[str, Service] = {}
        self.processes: dict[str, Process] = {}
        if run is None:
            self._choose(references.services(services), references.processes(processes))
        self.servers: stack.Servers | None = None
        self._borrowed = False
        self.broker: Broker  # where views, processes and clients read the commits
        self.log_broker: Broker  # where commands and commits are kept: the same, or MongoDB
        self.store: Store
        self.view_store: Store  # the same, where projectors write with the run's write concern
        try:
            if backend == "memory":
                twins = world.twins or partial(in_memory, self.settings.log)
                self.broker, self.log_broker, self.store = twins()
                self.view_store = self.store
            else:
                self._find_servers(report, start)
                self._open_store()
                if run is not None:
                    self._join(given)
                self._connect()
            if run is None:
                self._prepare()
            folds.check(self.store, COLLECTION, self.services.values())
        except BaseException:
            self.close()
            raise

    # --- what takes part

    def _choose(self, services: Sequence[Service], processes: Sequence[Process]) -> None:
        """The services and processes of the run; raises ``UsageError`` if they do not fit."""
        every = {service.name: service for service in services}
        named_processes: dict[str, Process] = {}
        for process in processes:
            if named_processes.setdefault(process.name, process) != process:
                raise UsageError(f"two processes of this run are named {process.name!r}")
        for process in named_processes.values():
            for source in process.sources:
                if source not in every:  # a built-in one can be had by its name
                    every[source] = references.service(source)
        for service in services:
            for process in service.processes:
                if set(process.sources) <= set(every):
                    named_processes.setdefault(process.name, process)
        doubles = [s.name for s in services if every[s.name] is not s]
        if taken := [*doubles, *sorted(set(every) & set(named_processes))]:
            raise UsageError(f"two services or processes of this run are named {taken[0]!r}")
        route(every.values())
        self.services, self.processes = every, named_processes

    def _join(self, given: Mapping[str, Any]) -> None:
        """Take the services and settings that the run was made with, but for the client."""
        found = self.store.load(COLLECTION, [SETTINGS_ID]).get(SETTINGS_ID)
        if found is None:
            raise UsageError(
                f"lab {self.name!r} has no run {self.run!r}; `labkit runs` lists those that it has"
            )
        del found["_id"]
        stored = msgspec.convert(found, Stored)
        self.settings = structs.replace(stored.settings, **given)
        self._choose(
            [references.service(r) for r in stored.services],
            [references.process(r) for r in stored.processes],
        )

    def _save(self) -> None:
        """Keep what every worker has to know. A service of ``__main__`` is kept by its name."""
        stored = Stored(
            [_reference(references.to_service, s) for s in self.services.values()],
            [_reference(references.to_process, p) for p in self.processes.values()],
            self.settings,
            self._clock.wall(),
        )
        document = {"_id": SETTINGS_ID, **msgspec.to_builtins(stored)}
        writes = Writes(inserts={COLLECTION: [document]})
        self.store.advance(f"{COLLECTION}.checkpoints", [], writes)

    def check_importable(self) -> None:
        """Raises ``UsageError`` if a worker process could not import a service or a process."""
        for service in self.services.values():
            references.to_service(service)
        for process in self.processes.values():
            references.to_process(process)

    # --- connections

    def _find_servers(self, report: Callable[[str], None], start: bool) -> None:
        # A worker goes where it is told to, whatever the state of a lab on this host says.
        self.servers = None if start else stack.given(self.name)
        if self.servers is None:
            self.servers = stack.borrow(self.name, self.run, report, start=start)
            self._borrowed = True

    @property
    def database(self) -> str:
        """The name of the run's database."""
        return f"{self.name}_{self.run}"

    def _open_store(self) -> None:
        from labkit.adapters.mongo import MongoStore

        assert self.servers is not None
        self.store = self.view_store = MongoStore(self.servers.mongo_uri, self.database)

    def _connect(self) -> None:
        from labkit.adapters.mongo import MongoStore

        assert self.servers is not None
        if self.settings.client == "confluent":
            from labkit.adapters.confluent import ConfluentBroker

            self.broker = ConfluentBroker(self.servers.bootstrap)
        else:
            from labkit.adapters.kafka_python import KafkaPythonBroker

            self.broker = KafkaPythonBroker(self.servers.bootstrap)
        if (concern := self.settings.write_concern) != DEFAULTS.write_concern:
            self.view_store = MongoStore(self.servers.mongo_uri, self.database, concern)
        self.log_broker = self.broker
        if self.settings.log == "mongodb":
            from labkit.adapters.mongo_log import MongoBroker

            self.log_broker = MongoBroker(self.servers.mongo_uri, self.database)

    def _prepare(self) -> None:
        events, commands = (
            {self.topic_name(f"{s}.{kind}"): self.partitions for s in self.services}
            for kind in ("events", "commands")
        )
        self.log_broker.create(events | commands)
        if self.log_broker is not self.broker:
            self.broker.create(events)
        # Collections exist before the first transaction: creating one inside is slow.
        self.store.index(COLLECTION, [("_id", 1)])
        for service in self.services.values():
            for field in ("waiting", "dead", "anew"):
                self.store.index(service.states, [(field, 1)], sparse=True)
            self.store.index(service.checkpoints, [("_id", 1)])
            self.store.index(service.seen, [("_id", 1)])
            self.store.index(service.snapshots, snapshots.INDEX)
            if service.views:
                self.prepare(ServiceProjection(service))
        for process in self.processes.values():
            self.store.index(f"{process.name}.checkpoints", [("_id", 1)])
            for projection in self.process_projections(process.name):
                self.prepare(projection)
        self._save()

    def prepare(self, projection: Projection, generation: int = 0) -> None:
        """Make sure of the collections of a projection, and of their indexes."""
        self.store.index(named(parked_in(projection.name), generation), PARKED_INDEX)
        for collection, indexes in projection.indexes.items():
            for keys in indexes or [[("_id", 1)]]:
                self.store.index(named(collection, generation), keys)

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

    def service(self, name: str) -> Service:
        """A service of this run; raises ``UsageError`` if it has none of that name."""
        if name not in self.services:
            raise UsageError(f"this run has no service {name!r}, but {', '.join(self.services)}")
        return self.services[name]

    def instances_of(self, role: str) -> tuple[str, ...]:
        """What the workers of a role are named after: services, processes, or the jobs."""
        services = self.services.values()
        match role:
            case "relay" if self.log_broker is self.broker:
                return ()
            case "notifier":
                return tuple(s.name for s in services if s.notices is not None)
            case "projector" | "query":
                return tuple(s.name for s in services if s.views)
            case "process":
                return tuple(self.processes)
            case "scheduler":
                return ("jobs",)
        return tuple(self.services)

    def readers(self, role: str, service: str) -> list[Reader]:
        """What the workers of a role read."""
        if role == "handler":
            found = self.services[service]
            return [Reader(f"{service}.commands", found.checkpoints, found.states)]
        if role == "projector":
            found = self.services[service]
            name = named(found.view, self.serving(service))
            return [Reader(f"{service}.events", found.checkpoints, name)]
        if role in ("relay", "query", "scheduler"):
            return []
        if role == "notifier":
            name = f"{service}.notices"
            return [Reader(f"{service}.events", f"{name}.checkpoints", name)]
        return [
            Reader(f"{p.service}.events", f"{service}.checkpoints", p.name)
            for p in self.process_projections(service)
        ]

    def serving(self, service: str) -> int:
        """The generation of a service's views that serves."""
        found = self.services[service]
        return serving(self.store.checkpoints(found.checkpoints), found.view)

    def process_projections(self, name: str) -> list[ProcessProjection]:
        """A process, for each of the services that it listens to."""
        process = self.processes[name]
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
        ]

    def environment(self) -> dict[str, str]:
        """The environment of a process of this run: addresses may hold a password."""
        assert self.servers is not None, "a lab in memory has no worker processes"
        return {
            **os.environ,
            SAFE_PATH: "1",
            "LABKIT_HOME": str(stack.home()),
            "LABKIT_BOOTSTRAP": self.servers.bootstrap,
            "LABKIT_MONGO_URI": self.servers.mongo_uri,
        }

    def owns(self, topic: str) -> bool:
        """Whether a topic is of this run: one of its own, or what Quix keeps of a state in it."""
        return topic.removeprefix("changelog__").startswith(self.topic_name(""))

    def registry(self) -> Path:
        """The file that names the workers of this run."""
        return runs_folder(self.name) / f"{self.run}.json"

    def streams_folder(self) -> Path:
        """Where the stream pipelines of this run keep their states as long as they run."""
        return runs_folder(self.name) / f"{self.run}.streams"

    def logs(self) -> Path:
        """Where workers write their logs."""
        return stack.home() / "labs" / self.name / "logs"

    def close(self) -> None:
        """Let go of connections and servers."""
        for end in ("broker", "log_broker", "store", "view_store"):
            if hasattr(self, end):
                getattr(self, end).close()
        if self._borrowed:
            self._borrowed = False
            stack.give_back(self.name, self.run)


def _reference(to: Callable[[Any], Reference], of: Service | Process) -> Reference:
    """A reference, as far as there is one: without, no worker process can join."""
    try:
        return to(of)
    except UsageError:
        return Reference(f"__main__:{of.name}")
