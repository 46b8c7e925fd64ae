"""What notebooks share to look and to check; no message ever passes through here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from labkit.adapters.memory_store import MemoryStore
from labkit.contexts import CONTEXTS
from labkit.errors import Fenced, TimedOut
from labkit.eventlog import fetch
from labkit.freshness import Position
from labkit.messages import Command
from labkit.projections import Projector
from labkit.queries import Queries
from labkit.views import PROJECTIONS

if TYPE_CHECKING:
    import pandas as pd


class Looked(Protocol):
    """What is needed of a ``Lab``, which only notebooks and programs may import."""

    servers: Any

    def peek(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """The records that a reader of a topic sees, and how many are hidden."""

    def collection(self, name: str) -> pd.DataFrame:
        """The documents of a collection."""

    def lag(self, role: str, context: str) -> int:
        """How far a role is behind."""

    def workers(self) -> list[Any]:
        """The worker processes."""


def commands(lab: Looked) -> pd.DataFrame:
    """The commands topic of orders, one row a command."""
    import pandas as pd

    rows, _ = lab.peek("orders.commands")
    return pd.DataFrame(
        [
            {
                "partition": row["partition"],
                "offset": row["offset"],
                "command id": row["value"]["id"],
                "command": row["value"]["body"]["type"],
                "order": row["key"],
            }
            for row in rows
        ],
        columns=["partition", "offset", "command id", "command", "order"],
    )


def commits(lab: Looked, order_id: str | None = None) -> pd.DataFrame:
    """The events topic of orders, one row a commit; ``order_id`` picks those of one order."""
    import pandas as pd

    rows, _ = lab.peek("orders.events")
    return pd.DataFrame(
        [
            {
                "partition": row["partition"],
                "offset": row["offset"],
                "order": row["key"],
                "command id": row["value"]["id"],
                "outcome": row["value"]["outcome"],
                "version": row["value"]["last"],
                "events": ", ".join(e["type"] for e in row["value"].get("events", ())) or "none",
            }
            for row in rows
            if order_id in (None, row["key"])
        ],
        columns=["partition", "offset", "order", "command id", "outcome", "version", "events"],
    )


def running(lab: Looked) -> pd.DataFrame:
    """The servers and worker processes of a lab; in memory there are none."""
    import pandas as pd

    if lab.servers is None:
        rows = [("topics and collections", "twins of Kafka and MongoDB", "inside this process")]
    else:
        mongo = lab.servers.mongo_uri.rpartition("@")[2].removeprefix("mongodb://")
        rows = [
            ("Kafka", "keeps the topics", lab.servers.bootstrap),
            ("MongoDB", "keeps the collections", mongo.partition("/")[0]),
        ]
    work = {"handler": "decides on commands", "projector": "writes the views"}
    for worker in lab.workers():
        rows.append((f"{worker.context} {worker.role}", work[worker.role], f"process {worker.pid}"))
    return pd.DataFrame(rows, columns=["what runs", "what it does", "where"]).set_index("what runs")


def catch_up(lab: Looked, timeout: float = 30.0) -> None:
    """Wait until the handler and the projector of orders have read all there is.

    Raises ``TimedOut`` where they do not.
    """
    deadline = time.monotonic() + timeout
    while behind := lab.lag("handler", "orders") + lab.lag("projector", "orders"):
        if time.monotonic() > deadline:
            raise TimedOut(f"the workers are still {behind} records behind after {timeout:g} s")
        time.sleep(0.05)


def work(lab: Any, context: str = "orders", wait: float = 1.0) -> int:
    """Step a handler by hand until nothing is left to do, and let it save its states.

    Returns how many commands it decided on.
    """
    handler, done = lab.by_hand("handler", context), 0
    while made := handler.step(wait):
        done += len(made)
    handler.flush()
    return done


def project(lab: Any, context: str = "orders", wait: float = 0.3) -> int:
    """Step a projector by hand until its views have all there is in the log.

    Returns how many commits it applied. Where somebody else took its partitions it begins a new
    life, as a worker process does.
    """
    done = 0
    while lab.lag("projector", context):
        with suppress(Fenced):
            done += lab.by_hand("projector", context).step(wait)
    return done


def settle(lab: Any, wait: float = 0.3) -> int:
    """Step every part of a lab by hand, in the order of a message, until nobody is behind any more.

    Commands that wait for an instant are left waiting, unless it has come. Returns how many steps
    found work.
    """
    steps, moved = 0, True
    while moved:
        moved = False
        for role in ("handler", "saga", "projector"):
            for host in lab.hosts(role):
                part = lab.by_hand(role, host)
                while part.step(0) or lab.lag(role, host):
                    moved = True
                    steps += bool(part.step(wait))
    for context in lab.contexts:
        lab.by_hand("handler", context).flush()
    return steps


def step_while_waiting(lab: Any, context: str = "orders") -> Queries:
    """Queries of a lab whose parts are stepped by hand: whoever waits steps them, and is told."""
    work = {"handler": "decided on", "projector": "put into the view"}

    def step() -> None:
        for role, what in work.items():
            made = lab.by_hand(role, context).step(0.1)
            if count := made if role == "projector" else len(made):
                print(f"   while the query waits, the {role} steps: {count} {what}")

    return Queries(lab.store, step, lab.queries._ends)


def answer_all(
    lab: Any, count: int, name: str, *, take: bool = False, wait: float = 1.0, **params: Any
) -> Any:
    """Ask the same so many times at once, and step the query handler by hand until all is answered.

    Returns how many of the answers were held and not read, and the seconds that these steps took;
    or, with ``take``, the last answer. Questions go to orders.
    """
    bus, seconds = lab.query_bus, 0.0
    questions = [bus.send(name, **params) for _ in range(count)]
    bus.flush()
    results: list[Any] = []
    while len(results) < count:
        began = time.perf_counter()
        if lab.by_hand("query").step(0.1 if results else wait):
            seconds += time.perf_counter() - began
        results += bus.hear(0.05)
    if take:
        return bus.answer(questions[-1])
    return sum(result.cached for result in results), seconds


class Copy:
    """Another copy of a context's views, kept elsewhere (in this process), from the same log.

    Its projector runs only when told to. ``queries`` ask this copy.
    """

    def __init__(self, lab: Any, context: str = "orders") -> None:
        self._lab, self._context = lab, context
        self._store = MemoryStore()
        self.queries = Queries(self._store, ends=lab.queries._ends)

    def catch_up(self, timeout: float = 30.0) -> None:
        """Project all that is in the log by now. Raises ``TimedOut``."""
        context = CONTEXTS[self._context]
        source = self._lab.broker.source(
            self._lab.topic_name(f"{context.name}.events"),
            self._lab.group("projector", f"{context.name}.copy"),
        )
        projection = PROJECTIONS[context.name]
        projector = Projector(projection, context.codec, source, self._store, context.checkpoints)

        def step() -> None:
            projector.step(0.3)

        try:
            projector.join(self._lab.partitions)
            ends = source.ends().items()
            goals = [Position(context.name, partition, end) for partition, end in ends if end]
            self.queries.until(goals, timeout, step)
        finally:
            projector.close()


def poll_all(consumer: Any, patience: float = 8.0, quiet: float = 1.5) -> list[Any]:
    """Everything that a bare Kafka consumer is given, in the order of its coming.

    It joins its group in the first polls, so it has ``patience`` seconds for the first record; then
    it is done when nothing has come for ``quiet`` seconds.
    """
    found: list[Any] = []
    last, patient = time.monotonic(), patience
    while time.monotonic() - last < patient:
        some = [r for records in consumer.poll(timeout_ms=200).values() for r in records]
        if some:
            found += some
            last, patient = time.monotonic(), quiet
        elif not found and consumer.assignment():
            patient = min(patient, 3.0)
    return found


def seconds_for(lab: Any, commands: Sequence[Command], wait: float = 10.0) -> float:
    """Send commands to orders; then, by the clock, how long the handler takes to decide on all."""
    for command in commands:
        lab.bus.send(command)
    lab.bus.flush()
    handler, done, began = lab.handler, 0, time.perf_counter()
    while done < len(commands):
        done += len(handler.step(wait))
    return time.perf_counter() - began


def one_by_one(lab: Any, commands: Sequence[Command], every: float, stall: float) -> pd.DataFrame:
    """A closed loop: one command each ``every`` seconds, if the one before is answered by then.

    After a quarter of them nobody works for ``stall`` seconds. The first comes before the clock
    starts, since it waits for connections. Then a row a command: ``at`` (when it was intended, s),
    and ms until its answer ``from_intended_ms`` and ``from_sent_ms``.
    """
    import pandas as pd

    lab.bus.listen("orders")

    def answered(command: Command, pause: float = 0.0) -> float:
        token = lab.bus.send(command).token()
        time.sleep(pause)
        while lab.bus.heard(token) is None:
            lab.handler.step(0.05)
            lab.bus.hear("orders", 0.05)
        return time.monotonic()

    began, rows = answered(commands[0]), []
    for number, command in enumerate(commands[1:]):
        at = number * every
        time.sleep(max(0.0, began + at - time.monotonic()))
        sent = time.monotonic()
        heard = answered(command, stall if number == len(commands) // 4 else 0.0)
        rows.append((at, 1e3 * (heard - began - at), 1e3 * (heard - sent)))
    return pd.DataFrame(rows, columns=["at", "from_intended_ms", "from_sent_ms"])


def send_raw(lab: Any, stream: str, raw: bytes, topic: str = "orders.commands") -> tuple[int, int]:
    """Put bytes into a topic, past all checks; returns their place: partition and offset."""
    sender = lab.log_broker.sender()
    try:
        place: tuple[int, int] = sender.send(lab.topic_name(topic), stream.encode(), raw).result(30)
    finally:
        sender.close()
    return place


def read_raw(lab: Any, topic: str, place: tuple[int, int]) -> bytes:
    """The bytes that lie at a place of a topic."""
    partition, offset = place
    source = lab.log_broker.source(lab.topic_name(topic))
    try:
        record = fetch(source, partition, [offset])[offset]
    finally:
        source.close()
    return record.value if record else b""


def try_out(sentences: Sequence[Callable[[], None]]) -> dict[int, str]:
    """Say which sentences (given, when, then) hold; the stories of the others, by their number."""
    stories: dict[int, str] = {}
    for number, sentence in enumerate(sentences, 1):
        try:
            sentence()
        except AssertionError as story:
            stories[number] = str(story)
        print(f"sentence {number}", "is false:" if number in stories else "holds")
        if number in stories:
            print(stories[number])
    return stories


class Look:
    """Looks at the five places where one order leaves its traces, and remembers what it saw.

    Call it with a name for the moment: the table sets what is there now beside what was there at
    the look before. ``history`` keeps the bare numbers of every look, by that name.
    """

    def __init__(self, lab: Looked, order_id: str) -> None:
        self._lab = lab
        self._order = order_id
        self._before: tuple[str, dict[str, str]] | None = None
        self.history: dict[str, dict[str, int]] = {}

    def __call__(self, when: str) -> pd.DataFrame:
        """The table; a changed row is marked."""
        import pandas as pd

        now = self._places(when)
        columns = {when: now}
        if self._before is not None:
            name, before = self._before
            changed = {place: "◀ changed" if now[place] != before[place] else "" for place in now}
            columns = {f"before: {name}": before, f"now: {when}": now, "": changed}
        self._before = (when, now)
        return pd.DataFrame(columns)

    def _places(self, when: str) -> dict[str, str]:
        sent, _ = self._lab.peek("orders.commands")
        made, hidden = self._lab.peek("orders.events")
        state = self._document("orders.state.v1")
        view = self._document("orders.view.orders")
        seen = self.history[when] = {
            "commands": sum(row["key"] == self._order for row in sent),
            "unread": self._lab.lag("handler", "orders"),
            "commits": sum(row["key"] == self._order for row in made),
            "hidden": hidden,
            "state": int(state.get("version", 0)),
            "view": int(view.get("version", 0)),
        }
        locked = f" + {hidden} that nobody may read" if hidden else ""
        shown = f", {view['status']}, {view['payment']}" if view else ""
        return {
            "topic orders.commands": _count(seen["commands"], "command"),
            "… not yet handled": str(seen["unread"] or "–"),
            "topic orders.events": _count(seen["commits"], "commit") + locked,
            "handler's saved state": f"version {seen['state']}" if state else "–",
            "view of the order": f"version {seen['view']}{shown}" if view else "–",
        }

    def _document(self, collection: str) -> dict[str, Any]:
        documents = self._lab.collection(collection)
        if documents.empty:
            return {}
        found = documents[documents["_id"] == self._order]
        return {} if found.empty else dict(found.iloc[0])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else "–"


def check(solved: bool, hint: str, praise: str) -> None:
    """Say whether an exercise is solved; the tests set ``LABKIT_STRICT`` to get an error instead.

    Raises ``AssertionError`` in the tests only.
    """
    if not solved and os.environ.get("LABKIT_STRICT"):
        raise AssertionError(f"not yet: {hint}")
    print(f"Solved. {praise}" if solved else f"Not yet. Hint: {hint}")
