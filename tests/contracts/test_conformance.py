"""Programs of Hypothesis that must look the same on the in-memory twins and on real servers.

What is looked at leaves the servers their freedom: records are read until nothing more comes, a
group until all its members agree, and what Kafka does a moment later is asked for again until it is
as the twin says. Members are named by what they own, since who gets which partition is free.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial, reduce
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer
from msgspec import Struct, field, structs

from labkit import stack
from labkit.adapters import kafka_python_source
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.mongo import MongoStore
from labkit.errors import Conflict, LabkitError
from labkit.ports.broker import DELIVERIES, Batch, Broker, CommandLog, Delivery, Record, Source
from labkit.ports.failpoints import Crash, Failpoint, armed
from labkit.ports.store import Checkpoint, Document, Reads, Store, Writes

pytestmark = [pytest.mark.contract, pytest.mark.servers]

#: How long a real server may take until it shows what the twin shows at once.
PATIENCE = 5.0
PARTITIONS = range(2)


def few(count: int) -> Any:
    """The same programs each time."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or the kind of its error."""
    try:
        return call()
    except LabkitError as error:
        return type(error).__name__


class Told:
    """The observations of one run; one on real servers is held to those of the twin."""

    def __init__(self, wanted: list[Any] | None = None) -> None:
        self._wanted = wanted
        self.seen: list[Any] = []

    def tell(
        self, what: object, look: Callable[[], Any], *, again: bool = True, free: str = ""
    ) -> Any:
        """Note what is seen; ``again``: look until it is what the twin has shown.

        ``free``: the kind of error that a real server may answer with instead.
        """
        deadline = time.monotonic() + PATIENCE
        found = outcome(look)
        seen = json.dumps(found, sort_keys=True, default=str)
        if self._wanted is not None:
            wanted = self._wanted[len(self.seen)]
            while again and seen != wanted and time.monotonic() < deadline:
                time.sleep(0.02)
                found = outcome(look)
                seen = json.dumps(found, sort_keys=True, default=str)
            if free and found == free:
                seen = wanted
            assert seen == wanted, f"step {what}: real {seen}, twin {wanted}"
        self.seen.append(seen)
        return found


def in_program(program: Sequence[object], run: Callable[[], None]) -> None:
    """Tell the program with what was different."""
    try:
        run()
    except (AssertionError, LabkitError) as error:
        raise AssertionError(f"{error}, in\n" + "\n".join(map(str, program))) from None


# --- the store


class Claim(Struct, frozen=True):
    id: str


class Advance(Struct, frozen=True):
    """``moves``: the checkpoint, how many states of it ago, and the new position."""

    moves: list[tuple[str, int, int]] = []
    writes: Writes = field(default_factory=Writes)


class Ask(Struct, frozen=True):
    """A question to the store, or to the open snapshot."""

    name: str
    args: list[Any]
    of_snapshot: bool = False


class Discard(Struct, frozen=True):
    collection: str


class Snapshot(Struct, frozen=True):
    """Opened here; the one before is closed."""


StoreStep = Claim | Advance | Ask | Discard | Snapshot
COLLECTIONS = ["a", "b"]
CHECKPOINTS = "checkpoints"


class StoreRun:
    """The interpreter of programs for a store."""

    def __init__(self, store: Store, told: Told) -> None:
        self._store = store
        self._told = told
        self._known: dict[str, list[Checkpoint]] = {}
        self._reads: Reads = store
        self._open = ExitStack()

    def run(self, program: list[StoreStep]) -> None:
        with self._open:
            for step in [*program, Ask("checkpoints", [CHECKPOINTS]), Ask("collections", [])]:
                # A snapshot does not show a collection that was made since; it says so.
                free = "Conflict" if isinstance(step, Ask) and step.of_snapshot else ""
                self._told.tell(step, partial(self._do, step), again=False, free=free)
            for name in COLLECTIONS:
                self._told.tell(name, partial(self._ask, "find", [name, {}]))

    def _do(self, step: StoreStep) -> Any:
        match step:
            case Claim(id):
                at = self._store.claim(CHECKPOINTS, id)
                self._known.setdefault(id, []).append(at)
                return structs.astuple(at)
            case Advance(moves, writes):
                pairs = []
                for id, back, position in moves:
                    known = self._known.get(id) or [Checkpoint(id, 1)]
                    old = known[-1 - back % len(known)]
                    pairs.append((old, structs.replace(old, position=position, command=position)))
                self._store.advance(CHECKPOINTS, pairs, json_copy(writes))
                for _, new in pairs:
                    self._known[new.id].append(new)
                return "done"
            case Ask(name, args, of_snapshot):
                return self._ask(name, args, of_snapshot)
            case Discard(collection):
                self._close()  # a snapshot does not outlive the collections it reads
                self._store.discard([collection])
            case Snapshot():
                self._close()
                return self._snapshot()
        return None

    def _snapshot(self) -> Any:
        """Its first read chooses the instant; where a collection was just made, it is refused."""
        for _ in range(100):
            with suppress(Conflict):
                reads = self._open.enter_context(self._store.snapshot())
                first = sorted(map(structs.astuple, reads.checkpoints(CHECKPOINTS)))
                for name in COLLECTIONS:
                    reads.count(name)
                self._reads = reads
                return first
            time.sleep(0.02)
        return "no snapshot"

    def _close(self) -> None:
        self._open.close()
        self._reads = self._store

    def _ask(self, name: str, args: list[Any], of_snapshot: bool = False) -> Any:
        reads = self._reads if of_snapshot and name != "collections" else self._store
        found = getattr(reads, name)(*args)
        match name:
            case "checkpoints":
                return sorted(map(structs.astuple, found))
            case "find" if not args[2:] or not args[2]:
                return sorted(found, key=lambda d: d["_id"])  # in no order
        return found


def json_copy(writes: Writes) -> Writes:
    """The driver may write into the documents that it is given."""
    return Writes(
        {name: [dict(d) for d in some] for name, some in writes.inserts.items()},
        {name: [dict(d) for d in some] for name, some in writes.replaces.items()},
        writes.deletes,
    )


names = st.sampled_from(COLLECTIONS)
ids = st.sampled_from("xyz")
values: st.SearchStrategy[Any] = st.sampled_from([0, 1, 2, 3, -1, 2**62, 1.5, None, True, "s"])
words: st.SearchStrategy[Any] = st.sampled_from(["", "s", "t", "ü"])
documents = st.fixed_dictionaries(
    {"_id": ids},
    optional={
        "n": values,
        "s": words,
        "rev": st.integers(1, 3),
        "tags": st.lists(words, max_size=2),
    },
)
whole = {"_id": ids, "n": st.integers(-3, 3), "s": words}
groups = st.dictionaries(names, st.lists(documents | st.fixed_dictionaries(whole), max_size=3))
moves = st.tuples(st.sampled_from("pq"), st.sampled_from([0, 0, 0, 1]), st.integers(0, 3))
advances = st.builds(
    Advance,
    st.lists(moves, max_size=2),
    st.builds(Writes, groups, groups, st.dictionaries(names, st.lists(ids, max_size=2))),
)
orders = st.sampled_from([("n", 1), ("n", -1), ("s", 1), ("s", -1)])


@st.composite
def finds(draw: st.DrawFn) -> list[Any]:
    where: Document = draw(
        st.fixed_dictionaries({}, optional={"n": values, "s": words, "tags": words})
    )
    sort, after = [], list[Any]()
    limit = 0
    if draw(st.booleans()):
        sort = [draw(orders), ("_id", draw(st.sampled_from([1, -1])))]
        limit = draw(st.integers(0, 3))
        if draw(st.booleans()):
            after = [draw(st.integers(-1, 3) if sort[0][0] == "n" else words), draw(ids)]
    at_most = draw(st.dictionaries(st.just("n"), st.integers(-1, 3)))
    fields = draw(st.sampled_from([[], ["n"], ["s", "tags"]]))
    return [draw(names), where, sort, limit, at_most, fields, after]


totals = st.tuples(
    names, st.sampled_from(["n", "s", "_id"]), st.just(["n"]), st.sampled_from(["", "n"]),
    st.integers(0, 2), st.none() | st.fixed_dictionaries({"s": words}),
).map(list)  # fmt: skip
asks = st.one_of(
    st.builds(Ask, st.just("find"), finds(), st.booleans()),
    st.builds(Ask, st.just("totals"), totals, st.booleans()),
    st.builds(Ask, st.just("load"), st.tuples(names, st.just(["x", "z"])).map(list), st.booleans()),
    st.builds(Ask, st.just("count"), st.tuples(names).map(list), st.booleans()),
    st.builds(Ask, st.just("checkpoints"), st.just([CHECKPOINTS]), st.booleans()),
    st.just(Ask("collections", [])),
)
some = st.lists(
    documents | st.fixed_dictionaries(whole), min_size=1, max_size=3, unique_by=lambda d: d["_id"]
)
beginnings = st.builds(Advance, st.just([]), st.builds(Writes, st.fixed_dictionaries({"a": some})))
steps = st.lists(
    st.one_of(
        st.builds(Claim, st.sampled_from("pq")), advances, advances, asks, asks,
        st.builds(Discard, st.sampled_from([*COLLECTIONS, CHECKPOINTS])), st.just(Snapshot()),
    ),
    min_size=1, max_size=15,
)  # fmt: skip
store_programs = st.tuples(beginnings, steps).map(lambda both: [both[0], *both[1]])


@pytest.fixture(scope="module")
def mongo(servers: stack.Servers) -> Iterator[MongoStore]:
    made = MongoStore(servers.mongo_uri, f"t_{uuid.uuid4().hex[:8]}")
    yield made
    made.drop()
    made.close()


def same_stores(real: Store, program: list[StoreStep]) -> None:
    twin = Told()
    StoreRun(MemoryStore(), twin).run(program)
    real.discard([*COLLECTIONS, CHECKPOINTS])
    in_program(program, lambda: StoreRun(real, Told(twin.seen)).run(program))


def written(*documents: Document) -> Advance:
    return Advance(writes=Writes({"a": list(documents)}))


def found(where: Document, *args: Any) -> Ask:
    return Ask("find", ["a", where, *args])


# What was different once.
ONCE_STORES: list[list[StoreStep]] = [
    # The steps of an advance see each other.
    [Advance(writes=Writes({"a": [{"_id": "x"}]}, {"a": [{"_id": "x", "n": 1}]}))],
    [Advance(writes=Writes({"a": [{"_id": "x"}]}, deletes={"a": ["x"]}))],
    [
        written({"_id": "x", "rev": 1}),
        Advance(writes=Writes({}, {"a": [{"_id": "x", "rev": 2}] * 2})),
    ],
    [Claim("p"), Advance([("p", 0, 1), ("p", 0, 1)])],
    # What fails, or does nothing, makes no collection; a discarded one has no checkpoints.
    [Advance(), Advance(writes=Writes({}, {"b": [{"_id": "x"}]}))],
    [Claim("p"), Discard(CHECKPOINTS)],
    # Values are ordered by kind, and what is missing comes first.
    [
        written({"_id": "x"}, {"_id": "y", "n": True}, {"_id": "z", "n": 1}),
        found({}, [("n", 1), ("_id", 1)]),
        found({"n": 1}),
        Ask("totals", ["a", "n", ["n"]]),
    ],
    [written({"_id": "x", "tags": ["s"]}), found({"tags": "s"})],
    # MongoDB's adapter forgot one of two conditions on a field.
    [written({"_id": "x", "n": -1}), found({"n": 0}, [], 0, {"n": 0})],
    [
        written({"_id": "x", "n": 1}),
        found({}, [("n", -1), ("_id", 1)], 0, {"n": 0}, [], [2, "x"]),
    ],
]  # fmt: skip


def each(programs: Sequence[object]) -> Callable[[Any], Any]:
    """All of them are tried first."""
    return lambda test: reduce(lambda made, program: example(program)(made), programs, test)


@few(40)
@each(ONCE_STORES)
@given(store_programs)
def test_stores_show_the_same(mongo: MongoStore, program: list[StoreStep]) -> None:
    same_stores(mongo, program)


@pytest.mark.slow
@few(1_000)
@given(store_programs)
def test_many_stores_show_the_same(mongo: MongoStore, program: list[StoreStep]) -> None:
    same_stores(mongo, program)


# --- the broker


class Send(Struct, frozen=True):
    partition: int


class Join(Struct, frozen=True):
    """A member more; ``id``: its transactional id, which may be that of a live or a dead one."""

    id: int
    delivery: Delivery = "exactly_once"


class Leave(Struct, frozen=True):
    """The owner of a partition closes."""

    partition: int


class Start(Struct, frozen=True):
    """Its owner starts, or starts again, where the group has committed."""

    partition: int


class Take(Struct, frozen=True):
    """All read what there is in the partitions that they have started."""


class Commit(Struct, frozen=True):
    """The owner of a partition commits what it has read: ``scheduled``: a record more, of its own.

    ``crash``: there it dies.
    """

    partition: int
    scheduled: bool = False
    crash: Failpoint | None = None


class Look(Struct, frozen=True):
    """All events, or how far the topics and the group are."""

    at: str


BrokerStep = Send | Join | Leave | Start | Take | Commit | Look
MOST_MEMBERS = 3
#: How often a group must be seen at rest.
ROUNDS = 3


class Member:
    """A live member of the group, with what it has read and not committed."""

    def __init__(self, log: CommandLog, id: int) -> None:
        self.log = log
        self.id = id
        self.owned: set[int] = set()
        self.at: dict[int, int] = {}
        self.held = Batch()
        self.term = 0
        self.fence: Any = None

    @property
    def generation(self) -> int:
        return int(getattr(self.fence, "generation_id", self.fence) or 0)

    def poll(self, term: int) -> None:
        batch = self.log.poll(100, 0.02)
        self.fence = batch.fence
        self.owned = (self.owned - batch.revoked) | batch.assigned
        for partition in batch.revoked | batch.assigned:
            self.at.pop(partition, None)
        self.at |= batch.positions
        if batch.records:
            self.held.records += batch.records
            self.held.positions |= batch.positions
            self.held.fence, self.term = batch.fence, term


class OtherShares(Exception):
    """A group has shared its partitions in another way, as it may; the rest cannot be compared."""


class BrokerRun:
    """The interpreter of programs for a broker.

    ``shares``: who owned which partition, after each change of members, on the twin.
    """

    def __init__(self, broker: Broker, told: Told, shares: list[list[int]] | None = None) -> None:
        self._wanted = shares
        self.shares: list[list[int]] = []
        run = uuid.uuid4().hex[:8]
        self._broker = broker
        self._told = told
        self._commands, self._events, self._group = f"{run}.c", f"{run}.e", f"{run}.g"
        self._members: list[Member] = []
        self._readers: dict[bool, Source] = {}
        self._ids: set[int] = set()
        self._sent = dict.fromkeys(PARTITIONS, 0)
        self._generation = 0
        self._term = 0

    def run(self, program: list[BrokerStep]) -> None:
        self._broker.create({self._commands: len(PARTITIONS), self._events: len(PARTITIONS)})
        self._sender = self._broker.sender()
        try:
            for step in program:
                again = isinstance(step, Start | Look)
                self._told.tell(step, partial(self._do, step), again=again)
            for member in self._members:
                member.log.close()
            for id in sorted(self._ids):  # whatever is open is undone
                self._log(id, "exactly_once").close()
            for at in ("committed events", "ends", "settled"):
                self._told.tell(f"at the end, {at}", partial(self._look, at))
        finally:
            for open in (self._sender, *self._readers.values(), *[m.log for m in self._members]):
                open.close()
            self._broker.drop([self._commands, self._events])

    def _log(self, id: int, delivery: Delivery) -> CommandLog:
        name = f"{self._group}.{id}"
        return self._broker.log(self._commands, self._events, self._group, name, delivery)

    def _do(self, step: BrokerStep) -> Any:
        match step:
            case Send(partition):
                number = self._sent[partition]
                self._sent[partition] += 1
                value = b"%d.%d" % (partition, number)
                return self._sender.send(self._commands, b"k", value, partition).result(10)
            case Join(id, delivery):
                return self._join(id, delivery)
            case Look(at):
                return self._look(at)
            case Take():
                return self._take()
        member = self._owner(step.partition)
        if member is None:
            return "nobody"
        match step:
            case Start(partition):
                self._take()
                self._agree()  # who is told "pending" polls and asks again
                self._forget(member, partition)
                member.at[partition] = member.log.start(partition)
                return member.at[partition]
            case Leave():
                self._gone(member)
            case Commit(partition, scheduled, crash):
                return self._commit(member, partition, scheduled, crash)
        return None

    def _owner(self, partition: int) -> Member | None:
        return next((m for m in self._members if partition in m.owned), None)

    def _forget(self, member: Member, partition: int) -> None:
        """What it has read there, it reads again."""
        member.log.stop(partition)
        member.at.pop(partition, None)
        held = member.held
        held.records = [r for r in held.records if r.partition != partition]
        held.positions.pop(partition, None)

    def _join(self, id: int, delivery: Delivery) -> Any:
        if len(self._members) == MOST_MEMBERS:
            return "full"
        self._take()
        self._ids.add(id)
        self._members.append(Member(self._log(id, delivery), id))
        self._changed()
        return "joined"

    def _gone(self, member: Member) -> None:
        self._take()
        self._members.remove(member)
        member.log.close()
        self._changed()

    def _changed(self) -> None:
        """By the program; kafka-python also rebalances by itself, whenever it hears of topics."""
        self._term += 1
        self._generation += 1
        self._agree()
        owners = [self._owner(p) for p in PARTITIONS]
        self.shares.append([self._members.index(m) for m in owners if m])
        if self._wanted and self._wanted[len(self.shares) - 1] != self.shares[-1]:
            raise OtherShares

    def _agree(self) -> None:
        """Poll until all members are in one generation and have their share of the partitions."""
        deadline = time.monotonic() + 30
        rounds = 0
        while self._members and rounds < ROUNDS:
            assert time.monotonic() < deadline, "the group does not come to rest"
            for member in self._members:
                member.poll(self._term)
            generations = {m.generation for m in self._members}
            owned = sorted(p for m in self._members for p in m.owned)
            shares = sorted(len(m.owned) for m in self._members)
            rest = len(generations) == 1 and min(generations) >= self._generation
            rest = rest and owned == list(PARTITIONS) and shares[-1] - shares[0] <= 1
            rounds = rounds + 1 if rest else 0
        self._generation = max([m.generation for m in self._members], default=self._generation)

    def _take(self) -> Any:
        deadline = time.monotonic() + 10
        while any(at < self._sent[p] for m in self._members for p, at in m.at.items()):
            assert time.monotonic() < deadline, "what was sent is not read"
            for member in self._members:
                member.poll(self._term)
        held = [r for m in self._members for r in m.held.records]
        return sorted((r.partition, r.offset, r.value.decode()) for r in held)

    def _commit(
        self, member: Member, partition: int, scheduled: bool, crash: Failpoint | None
    ) -> Any:
        held, member.held = member.held, Batch()
        commits = [structs.replace(r, value=b"did " + r.value) for r in held.records]
        if scheduled:
            commits.append(Record(partition, 0, b"k", b"scheduled"))
        if not commits:
            return "nothing"
        if not held.records or member.term == self._term:
            self._agree()
            held.fence = member.fence
        try:
            with ExitStack() as stack:
                if crash:
                    stack.enter_context(armed(crash))
                return member.log.commit(held, commits)
        except Crash:
            self._gone(member)
            return "crash"
        except LabkitError:
            self._gone(member)
            raise

    def _look(self, at: str) -> Any:
        match at:
            case "offsets" | "settled":
                settled = at == "settled"
                return self._broker.committed(self._commands, self._group, settled=settled)
            case "ends":
                return self._reader(False).ends()
        return self._all(self._reader(at != "committed events"))

    def _reader(self, uncommitted: bool) -> Source:
        if uncommitted not in self._readers:
            source = self._broker.source(self._events, uncommitted=uncommitted)
            self._readers[uncommitted] = source
        return self._readers[uncommitted]

    def _all(self, reader: Source) -> Any:
        at = dict.fromkeys(PARTITIONS, 0)
        for partition in PARTITIONS:
            reader.start(partition, 0)
        found: list[Record] = []
        quiet = time.monotonic() + 0.1
        while True:
            batch = reader.poll(100, 0.02)
            found += batch.records
            at |= batch.positions
            if batch.positions:
                quiet = time.monotonic() + 0.1
            if isinstance(self._broker, MemoryBroker) or time.monotonic() > quiet:
                found.sort(key=lambda r: (r.partition, r.offset))
                return at, [(r.partition, r.offset, r.value.decode()) for r in found]


parts = st.sampled_from(PARTITIONS)
joins = st.builds(Join, st.integers(0, 2), st.sampled_from(("exactly_once", *DELIVERIES)))
commits = st.builds(Commit, parts, st.booleans(), st.none())
crashes = st.builds(
    Commit, parts, st.booleans(),
    st.sampled_from([Failpoint.HANDLER_PRODUCED, Failpoint.HANDLER_OFFSETS]),
)  # fmt: skip
looks = st.sampled_from(["committed events", "all events", "ends", "offsets"])
ready = st.just([Start(0), Start(1), Take()])
bundles = st.one_of(
    st.builds(Send, parts).map(lambda s: [s]),
    st.builds(lambda p, q: [Send(p), Send(q), Take()], parts, parts),
    ready,
    joins.map(lambda j: [j, Start(0), Start(1), Take()]),
    joins.map(lambda j: [j]),
    st.builds(Leave, parts).map(lambda s: [s]),
    st.builds(Start, parts).map(lambda s: [s]),
    commits.map(lambda s: [s]),
    commits.map(lambda s: [Take(), s]),
    crashes.map(lambda s: [Take(), s]),
    st.builds(Look, looks).map(lambda s: [s]),
)
broker_programs = st.tuples(joins, st.lists(bundles, min_size=4, max_size=10)).map(
    lambda both: [Send(0), Send(1), both[0], *[step for some in both[1] for step in some]]
)


class EagerConsumer(KafkaConsumer):  # type: ignore[misc]
    """Hears of a rebalance soon; a lab's members hear of it within a second."""

    def __init__(self, *topics: str, **config: Any) -> None:
        super().__init__(*topics, **{**config, "heartbeat_interval_ms": 50})


@pytest.fixture(scope="module")
def kafka(servers: stack.Servers) -> Iterator[KafkaPythonBroker]:
    made = KafkaPythonBroker(servers.bootstrap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_python_source, "KafkaConsumer", EagerConsumer)
        yield made
    made.close()


def same_brokers(real: Broker, program: list[BrokerStep]) -> None:
    twin = BrokerRun(MemoryBroker(), told := Told())
    twin.run(program)
    for tries in (2, 1, 0):  # a rebalance or a time-out may come between; a difference stays
        run = BrokerRun(real, Told(told.seen), twin.shares)
        try:
            in_program(program, partial(run.run, program))
            return
        except OtherShares:
            event("other shares")
            return
        except AssertionError as error:
            if not tries:
                raise
            print(f"once more: {error}")


def begun(delivery: Delivery) -> list[BrokerStep]:
    return [Send(0), Send(1), Join(0, delivery), Start(0), Start(1), Take()]


SEEN = [Look("committed events"), Look("all events"), Look("ends"), Look("offsets")]
# What was different once.
ONCE_BROKERS: list[list[BrokerStep]] = [
    # A transaction that the group fences is open until its id is taken over.
    [*begun("exactly_once"), Join(1), Commit(0), *SEEN],
    # Who has no transactions takes none over.
    [
        *begun("exactly_once"),
        Commit(0, crash=Failpoint.HANDLER_OFFSETS),
        Join(0, "at_least_once"),
        Start(0),
        *SEEN,
    ],
    # Offsets alone move under the newest generation, not under that of the batch.
    [*begun("at_least_once"), Join(1, "at_most_once"), Commit(0), *SEEN],
]


@few(3)
@each(ONCE_BROKERS)
@given(broker_programs)
def test_brokers_show_the_same(kafka: KafkaPythonBroker, program: list[BrokerStep]) -> None:
    same_brokers(kafka, program)


@pytest.mark.slow
@pytest.mark.timeout(900)
@few(25)
@given(broker_programs)
def test_many_brokers_show_the_same(kafka: KafkaPythonBroker, program: list[BrokerStep]) -> None:
    same_brokers(kafka, program)
