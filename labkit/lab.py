"""What a notebook holds: ``Lab(...)``, a run with the tools to step it by hand and to look at it.

::

    lab = Lab()                      # real Kafka and MongoDB; started if they are not up
    lab = Lab(backend="memory")      # no server at all, the same cells run

    lab.bus, lab.queries             # the two ends
    lab.handler, lab.projector       # the parts, to be stepped by hand
    lab.start()                      # or as worker processes, under a supervisor
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, structs

from labkit import stack
from labkit.errors import StackError, TimedOut, Unreachable, UsageError
from labkit.log.dead_letter import DeadLetter
from labkit.log.event_log import HISTORY, EventLog
from labkit.log.partition import Watermarks, peek
from labkit.messages import Answer
from labkit.ports.broker import Broker, Source
from labkit.ports.failpoints import Crash, Failpoint, armed
from labkit.ports.store import Checkpoint
from labkit.query.bus import QueryBus
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.generations import Views, of_reader
from labkit.read.projector import Projector
from labkit.read.queries import Queries
from labkit.read.rebuild import KEEP_SECONDS, Progress
from labkit.read.sessions import Session
from labkit.read.subscriptions import Subscription, follow
from labkit.run.registry import Alive, running_runs
from labkit.run.run import ROLES, Role
from labkit.run.settings import Settings
from labkit.run.supervisor import Instructions, Workers, crash_worker
from labkit.run.wiring import Parts
from labkit.run.worker import Worker
from labkit.services.services import CONTEXTS, Context, route
from labkit.services.views import PROJECTIONS
from labkit.write.bus import CommandBus
from labkit.write.dead_letters import DeadLetters, Waiting
from labkit.write.handler import Handler

if TYPE_CHECKING:
    import pandas as pd

    from labkit.plots.film import Film

READY_SECONDS = 60.0
#: A reader that got nothing for so long is stuck behind a transaction that is open.
STUCK_SECONDS = 2.0
#: Who reads for a minute between two steps is put out of the group (the adapters' poll interval is
#: 60 s), and the next step would only rejoin. So a part that lay idle starts a new life instead.
IDLE_SECONDS = 40.0


class Crashed(Struct, frozen=True):
    """How a part died: ``signal`` is 9 for a process, 0 inside one process."""

    role: str
    at: str
    pid: int
    signal: int


class Lab(Parts):
    """One run: its topics, its database, its parts.

    Args:
        name: of the servers (``labkit up --lab NAME``).
        backend: ``kafka`` (real Kafka and MongoDB) or ``memory``.
        run: joins an existing run; the default is a new one with topics and a database of its own.
        services: which services take part.
        processes: which processes run between them; the services they need take part, too.
        start: start servers that are not up; otherwise that is ``Unreachable``.
        report: is given a line for each step of starting servers.
        settings: how the parts work, by name: see ``settings.Settings``.

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
        **settings: Any,
    ) -> None:
        self._workers: Workers | None = None
        self._pumping: list[Role] = []
        self._stepping: str | None = None
        self._parts: dict[tuple[str, str], Any] = {}
        self._touched: dict[tuple[str, str], float] = {}
        self._event_logs: dict[str, EventLog] = {}
        self._marks = Watermarks(self._source)
        self._bus: CommandBus | None = None
        self._query_bus: QueryBus | None = None
        if unknown := set(settings) - set(Settings.__struct_fields__):
            raise UsageError(
                f"unknown setting {unknown.pop()!r}; known: {', '.join(Settings.__struct_fields__)}"
            )
        super().__init__(
            name,
            backend=backend,
            run=run,
            services=services,
            processes=processes,
            start=start,
            report=report,
            settings=Settings(**settings),
        )
        self.queries = Queries(self.store, self.pump, self._watermarks)

    # --- the two ends

    @property
    def bus(self) -> CommandBus:
        """Where commands go in."""
        if self._bus is None:
            self._bus = CommandBus(
                route(CONTEXTS[service] for service in self.services),
                self.topic_name,
                self.log_broker.sender(),
                lambda service: self.broker.source(self.topic_name(f"{service}.events")),
                pump=self.pump,
            )
        return self._bus

    @property
    def query_bus(self) -> QueryBus:
        """Where questions go in that are answered through Kafka, by the query handlers."""
        if self._query_bus is None:
            self._query_bus = self.make_query_bus(self.pump)
        return self._query_bus

    def subscribe(
        self, name: str, /, *, fresh: Fresh = EVENTUAL, **params: Any
    ) -> Subscription[Any]:
        """The answer to a query of the query bus, and then its updates, read here. Close it.

        Monotonic: none shows less of the log than the one before.
        """
        return follow(self.store, Session(self.queries), name, fresh, params, self.pump)

    def log(self, service: str = "orders") -> EventLog:
        """What the events topic of a service says."""
        if service not in self._event_logs:
            source = self.broker.source(self.topic_name(f"{service}.events"))
            self._event_logs[service] = EventLog(CONTEXTS[service], source, self.store)
        return self._event_logs[service]

    # --- the parts, by hand

    @property
    def handler(self) -> Handler:
        """The handler of orders, in this process, owning all partitions."""
        return self.by_hand("handler")  # type: ignore[no-any-return]

    @property
    def projector(self) -> Projector:
        """The projector of orders, in this process, owning all partitions."""
        return self.by_hand("projector")  # type: ignore[no-any-return]

    def by_hand(self, role: Role, service: str = "orders") -> Any:
        """A part in this process. The workers must be stopped, or it waits for partitions."""
        if self._workers is not None:
            raise UsageError(
                "worker processes are running; call lab.stop() before stepping by hand"
            )
        key = (role, service)
        if (old := self._parts.get(key)) is not None:
            idle = time.monotonic() - self._touched[key]
            if old.broken or (self.backend == "kafka" and idle > IDLE_SECONDS):
                self._parts.pop(key).close()
        if key not in self._parts:
            part = self.make(Worker(role, service, 0))
            try:
                part.join(self.partitions)
            except BaseException:
                part.close()
                raise
            self._parts[key] = part
        self._touched[key] = time.monotonic()
        return self._parts[key]

    def crash(self, role: Role, at: Failpoint, service: str = "orders") -> Crashed:
        """Let a part die at a failpoint, for real: a process of its own, killed by SIGKILL.

        The next step by hand is its next life. In memory the part is dropped at the failpoint.
        Raises ``TimedOut`` if the failpoint was not reached: give it something to do first.
        """
        if old := self._parts.pop((role, service), None):
            old.close()
        if self.backend == "memory":
            return self._crash_in_memory(role, at, service)
        pid = crash_worker(
            self.worker_command(Worker(role, service, 0)), self.environment(), self.logs(), at
        )
        return Crashed(role, at, pid, 9)

    def _crash_in_memory(self, role: Role, at: Failpoint, service: str) -> Crashed:
        part = self.make(Worker(role, service, 0))
        try:
            with armed(at):
                for _ in range(3):
                    part.step(0)
                getattr(part, "flush", lambda: None)()
        except Crash:
            return Crashed(role, at, os.getpid(), 0)
        finally:
            part.close()
        raise TimedOut(f"failpoint {at} was not reached; is there a command to handle?")

    # --- the parts, as processes

    def start(
        self,
        handlers: int = 1,
        projectors: int = 1,
        processes: int = 1,
        notifiers: int = 0,
        queries: int = 0,
    ) -> None:
        """Start so many workers of each service, and of each process of this run; wait until
        they own all partitions (but for query handlers, which are only waited for by who asks). On
        the MongoDB log each service has one relay, too.

        In memory there are no processes: whoever waits for an answer steps the parts.
        """
        counts: dict[Role, int] = {"handler": handlers, "relay": 1, "projector": projectors}
        counts |= {"process": processes, "notifier": notifiers, "query": queries}
        if self.backend == "memory":
            self._pumping = [role for role, count in counts.items() if count]
            return
        if self._workers is not None:
            raise UsageError(f"the workers of run {self.run!r} are running already")
        self._close_parts()
        workers = [
            Worker(role, host, slot)
            for role, count in counts.items()
            for host in self.hosts(role)
            for slot in range(count)
        ]
        before = self._epochs()
        order = Instructions(
            registry=str(self.registry()),
            logs=str(self.logs()),
            run=self.run,
            client=self.client,
            log=self.settings.log,
            partitions=self.partitions,
            workers=workers,
            commands=[self.worker_command(worker) for worker in workers],
        )
        self._workers = Workers(order, self.environment())
        try:
            self._wait_until_claimed(workers, before)
        except BaseException:
            self.stop()
            raise

    def _wait_until_claimed(self, workers: list[Worker], before: dict[str, int]) -> None:
        wanted = {
            f"{reader.name}:{partition}"
            for worker in workers
            for reader in self.readers(worker.role, worker.service)
            for partition in range(self.partitions)
        }
        deadline = time.monotonic() + READY_SECONDS
        while missing := {id for id in wanted if self._epochs().get(id, 0) <= before.get(id, 0)}:
            self.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"the workers do not own {sorted(missing)} after {READY_SECONDS:g} s; "
                    f"see {self.logs()}"
                )
            time.sleep(0.05)

    def _epochs(self) -> dict[str, int]:
        return {c.id: c.epoch for c in self.checkpoints()}

    def checkpoints(self) -> list[Checkpoint]:
        """How far each reader of this run has come, and in which epoch."""
        readers = [
            reader
            for role in ROLES
            for host in self.hosts(role)
            for reader in self.readers(role, host)
        ]
        wanted: dict[str, set[str]] = {}
        for reader in readers:
            wanted.setdefault(reader.checkpoints, set()).add(reader.name)
        return [
            checkpoint
            for collection, names in sorted(wanted.items())
            for checkpoint in self.store.checkpoints(collection)
            if checkpoint.id.rpartition(":")[0] in names
        ]

    def stop(self) -> None:
        """Stop the worker processes."""
        workers, self._workers = self._workers, None
        self._pumping = []
        if workers is not None:
            workers.stop()

    def workers(self) -> list[Alive]:
        """The worker processes that live now."""
        return self._workers.alive() if self._workers else []

    def check(self) -> None:
        """Raises ``Unreachable`` or ``StackError`` if a server or the supervisor is gone."""
        if self._workers is not None:
            self._workers.check()
        if self.servers is not None and stack.running(self.name) is None:
            raise Unreachable(
                f"the servers of lab {self.name!r} ({self.servers.bootstrap}, "
                f"{self.servers.mongo_uri.rpartition('@')[2]}) do not answer any more; "
                "see `labkit status` and `labkit logs`"
            )

    def pump(self) -> None:
        """In memory and started: do what worker processes would do. Or step what is by hand."""
        if self._pumping:
            for role in self._pumping:
                for host in self.hosts(role):
                    self.by_hand(role, host).step(0)
        elif self._stepping:
            self.by_hand("handler", self._stepping).step(0.1)

    def rebuild_view(self, view: str, keep: float = KEEP_SECONDS) -> Progress:
        """Build a view anew while it serves, and let the new generation serve.

        The old one is kept for ``keep`` seconds, for those who are reading it.
        """
        with closing(self.rebuild(view)) as rebuild:
            progress = rebuild.run(keep, lambda _: self.check())
        if (part := self._parts.pop(("projector", view.partition(".")[0]), None)) is not None:
            part.close()  # stepped by hand: its next life is of the new generation
        return progress

    # --- looking

    def peek(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """What a topic shows to a reader of committed records, and how many offsets it hides.

        Rows hold ``partition``, ``offset``, ``key`` and ``value`` (JSON, or bytes where it is not).
        What is hidden belongs to transactions that are still open.
        """
        source = self.broker_of(name).source(self.topic_name(name))
        try:
            records, hidden = peek(source, STUCK_SECONDS if self.backend == "kafka" else 0.0)
        finally:
            source.close()
        rows = [
            {
                "partition": r.partition,
                "offset": r.offset,
                "key": r.key.decode("utf-8", "backslashreplace"),
                "value": _readable(r.value),
            }
            for r in records
        ]
        return rows, hidden

    def topic(self, name: str) -> pd.DataFrame:
        """What a topic holds: one row a record (partition, offset, key, value)."""
        import pandas as pd

        return pd.DataFrame(self.peek(name)[0], columns=["partition", "offset", "key", "value"])

    def history(self, stream: str, service: str = "orders") -> pd.DataFrame:
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
        return found + [d for d in self.held_back() if service in (None, d.service)]

    def dead_letter(self, stream: str, service: str = "orders") -> pd.DataFrame:
        """What waits in a parked stream, in order: one row a command, of the first 1,000.

        Columns: offset, id, command, body.
        """
        import pandas as pd

        with closing(self.letters(service)) as letters:
            rows = [structs.asdict(command) for command in letters.waiting(stream)]
        return pd.DataFrame(rows, columns=list(Waiting.__struct_fields__))

    def replay(self, stream: str, service: str = "orders") -> Answer:
        """Let a parked stream go on with all that waits in it."""
        return self._release(stream, service, drop=False)

    def drop_dead_letter(self, stream: str, service: str = "orders") -> Answer:
        """Let a parked stream go on without the first command that waits in it."""
        return self._release(stream, service, drop=True)

    def _release(self, stream: str, service: str, drop: bool) -> Answer:
        """Where the handler is stepped by hand, it is stepped until it has answered."""
        self._stepping = service if ("handler", service) in self._parts else None
        try:
            with closing(self.letters(service)) as letters:
                return letters.release(stream, drop=drop)
        finally:
            self._stepping = None

    def letters(self, service: str) -> DeadLetters:
        """The dead letters of a service; close them. Its handler by hand saves what it knows."""
        if service not in self.services:
            raise UsageError(f"this run has no service {service!r}, but {', '.join(self.services)}")
        if ("handler", service) in self._parts:
            self.by_hand("handler", service).flush()
        topic = self.topic_name(f"{service}.commands")
        return DeadLetters(
            CONTEXTS[service],
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
        views = {PROJECTIONS[service].name for service in self.services}
        name, _, rest = collection.rpartition(".")
        of_view = name in views and "@" not in rest
        return Views(self.store).collection(collection) if of_view else collection

    def lag(self, role: str, service: str) -> int:
        """How many offsets the group of a role is behind; markers count too."""
        behind = 0
        if role == "relay":
            topic = self.topic_name(f"{service}.events")
            published = self._ends(self.broker, topic)
            written = self._ends(self.log_broker, topic)
            return sum(written[partition] - published[partition] for partition in written)
        if role == "query":
            topic = self.topic_name(f"{service}.queries")
            reached = self.broker.committed(topic, self.group(role, service))
            ends = self._ends(self.broker, topic)
            return sum(end - reached.get(partition, 0) for partition, end in ends.items())
        for reader in self.readers(role, service):
            topic = self.topic_name(reader.topic)
            ends = self._ends(self.broker_of(topic), topic)
            if role == "handler":
                reached = self.log_broker.committed(topic, self.group(role, service))
            else:
                known = of_reader(self.store.checkpoints(reader.checkpoints), reader.name)
                reached = {partition: c.position for partition, c in known.items()}
            behind += sum(end - reached.get(partition, 0) for partition, end in ends.items())
        return behind

    def ends(self, name: str) -> dict[int, int]:
        """The high watermarks of a topic (``orders.events``), where commands and commits are kept.

        Raises ``UsageError`` where this run has no such service.
        """
        service = name.partition(".")[0]
        if service not in self.services:
            raise UsageError(f"this run has no service {service!r}, but {', '.join(self.services)}")
        return self._ends(self.log_broker, self.topic_name(name))

    def _ends(self, broker: Broker, topic: str) -> dict[int, int]:
        return self._marks((broker is self.broker, topic))

    def _source(self, key: tuple[bool, str]) -> Source:
        published, topic = key
        return (self.broker if published else self.log_broker).source(topic)

    def _watermarks(self, service: str) -> dict[int, int]:
        """Of the events, where they are kept: on the MongoDB log a relay may be behind it, and a
        record has the same offset in both."""
        return self.ends(f"{service}.events")

    def server_versions(self) -> dict[str, str]:
        """Of Kafka and MongoDB."""
        return {"kafka": self.broker.version(), "mongodb": self.store.version()}

    def ignored_commits(self) -> int:
        """Commits that a reader ignored because their version did not fit: each a lost write."""
        return sum(checkpoint.ignored for checkpoint in self.checkpoints())

    def film(self, order_id: str) -> Film:
        """The way of an order's newest message: command, partition, commit, view."""
        from labkit.plots.film import Film, Trace

        order = self.queries.order(order_id)
        if order is None:
            raise UsageError(f"the view holds no order {order_id!r}; has its projector run?")
        sent, made = self.peek("orders.commands")[0], self.peek("orders.events")[0]
        return Film(Trace.of(order, sent, made, self.partitions))

    # --- the end

    def _close_parts(self) -> None:
        parts: list[Any] = [
            *self._parts.values(),
            *self._event_logs.values(),
            self._marks,
        ]
        self._parts, self._event_logs = {}, {}
        for part in parts:
            part.close()

    def close(self) -> None:
        """Stop the workers, let go of connections, stop the servers if this lab started them."""
        self.stop()
        self._close_parts()
        if self._bus is not None:
            self._bus.close()
            self._bus = None
        if self._query_bus is not None:
            self._query_bus.close()
            self._query_bus = None
        super().close()
        if self._started_servers and not running_runs(self.name):
            stack.down(self.name)
            self._started_servers = False

    def drop(self) -> None:
        """Delete the run's topics and database, then close."""
        self.stop()
        self._close_parts()
        self.broker.drop([topic for topic in self.broker.topics() if self.owns(topic)])
        shutil.rmtree(self.streams_folder(), ignore_errors=True)
        self.store.drop()
        self.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _readable(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


__all__ = ["Context", "Crashed", "Lab"]
