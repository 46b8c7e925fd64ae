"""What the core relies on in a broker: kafka-python, confluent-kafka and the twin alike."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import ClusterAuthorizationFailedError
from kafka.structs import MemberState

from labkit.adapters.kafka import partition_of, spread
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_mongo_log import MemoryMongoBroker
from labkit.adapters.mongo_log import MongoBroker
from labkit.errors import Fenced, LabkitError, Pending, Unreachable
from labkit.ports.broker import Batch, Broker, CommandLog, Record, Source
from labkit.ports.failpoints import Crash, Failpoint, armed

pytestmark = [pytest.mark.contract, pytest.mark.servers]

PARTITIONS = 4
#: The log on MongoDB, and its twin.
ON_MONGODB = (MongoBroker, MemoryMongoBroker)


@pytest.fixture(params=["memory", "memory-mongodb", "kafka-python", "confluent", "mongodb"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "memory":
        yield MemoryBroker()
        return
    if request.param == "memory-mongodb":
        yield MemoryMongoBroker()
        return
    servers = request.getfixturevalue("servers")
    if request.param == "mongodb":
        log = MongoBroker(servers.mongo_uri, "contract")
        yield log
        log.close()
        return
    if request.param == "confluent":
        from labkit.adapters.confluent import ConfluentBroker as Chosen
    else:
        from labkit.adapters.kafka_python import KafkaPythonBroker as Chosen
    made = Chosen(servers.bootstrap)
    yield made
    made.close()


def markers(broker: Broker, transactions: int) -> int:
    """What transactions leave behind, besides their records: in Kafka a marker each."""
    return 0 if isinstance(broker, ON_MONGODB) else transactions


class Topics:
    """Fresh topics, and everything that was opened on them."""

    def __init__(self, broker: Broker) -> None:
        run = uuid.uuid4().hex[:8]
        self.broker = broker
        self.commands, self.events, self.group = f"{run}.commands", f"{run}.events", f"{run}.g"
        self.opened: list[Source] = []
        broker.create({self.commands: PARTITIONS, self.events: PARTITIONS})

    def log(self, id: str = "handler-0") -> CommandLog:
        log = self.broker.log(self.commands, self.events, self.group, f"{self.group}.{id}")
        self.opened.append(log)
        return log

    def source(self, topic: str, group: str | None = None) -> Source:
        source = self.broker.source(topic, group)
        self.opened.append(source)
        return source

    def send(self, *keys: str) -> list[tuple[int, int]]:
        sender = self.broker.sender()
        sent = [sender.send(self.commands, key.encode(), f'"{key}"'.encode()) for key in keys]
        sender.flush(20)
        where = [delivery.result(20) for delivery in sent]
        sender.close()
        return where


@pytest.fixture
def topics(broker: Broker) -> Iterator[Topics]:
    made = Topics(broker)
    yield made
    for source in made.opened:
        source.close()
    broker.drop([made.commands, made.events])


def until(source: Source, done: Callable[[], bool], take: Callable[[Batch], None]) -> None:
    deadline = time.monotonic() + 45
    while not done():
        assert time.monotonic() < deadline, "it never came"
        take(source.poll(100, 0.2))


def own(source: Source, count: int = PARTITIONS) -> None:
    """Poll until ``count`` partitions are owned, and start them."""
    owned: set[int] = set()

    def take(batch: Batch) -> None:
        nonlocal owned
        owned = (owned - batch.revoked) | batch.assigned
        assert not batch.records
        for partition in batch.assigned:
            source.start(partition)

    until(source, lambda: len(owned) >= count, take)


def gather(source: Source, count: int) -> list[Batch]:
    batches: list[Batch] = []
    until(source, lambda: sum(len(b.records) for b in batches) >= count, batches.append)
    return batches


def echo(batch: Batch) -> list[Record]:
    return [Record(r.partition, 0, r.key, b"did:" + r.value) for r in batch.records]


def everything(topics: Topics, topic: str, count: int) -> list[Record]:
    reader = topics.source(topic)
    for partition in range(PARTITIONS):
        reader.start(partition, 0)
    return [r for b in gather(reader, count) for r in b.records]


def test_a_send_is_acknowledged_with_its_place(topics: Topics) -> None:
    where = topics.send("a", "b", "a")
    assert where[0][0] == where[2][0]
    assert where[2][1] == where[0][1] + (2 if where[1][0] == where[0][0] else 1)


@pytest.mark.parametrize("opened", ["source", "log"])
def test_what_cannot_be_opened_leaves_no_connection(topics: Topics, opened: str) -> None:
    topics.send("a")
    threads = psutil.Process().num_threads()
    topics.commands = "nosuch"
    for _ in range(3):
        with pytest.raises(Unreachable, match="topic 'nosuch' does not exist"):
            topics.log() if opened == "log" else topics.source("nosuch")
    deadline = time.monotonic() + 20
    while psutil.Process().num_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.1)
    assert psutil.Process().num_threads() <= threads


def test_all_clients_hash_keys_like_kafka(topics: Topics) -> None:
    keys = [f"order-{n}" for n in range(40)] + ["", "ü", "订单"]
    sent = topics.send(*keys)
    reader = topics.source(topics.commands)
    assert [p for p, _ in sent] == reader.partitions_for([key.encode() for key in keys])
    # The reference: murmur2 of Kafka's Java client, by its own test vectors.
    assert {p for p, _ in sent} == set(range(PARTITIONS))


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 50))
def test_many_keys_are_hashed_like_each(keys: list[bytes], partitions: int) -> None:
    """The reference here is kafka-python's own, key by key."""
    assert spread(keys, partitions) == [partition_of(key, partitions) for key in keys]


def test_nothing_flows_before_start(topics: Topics) -> None:
    topics.send("a")
    log = topics.log()
    seen = []
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        seen.append(log.poll(10, 0.1))
    assert any(b.assigned for b in seen)
    assert not any(b.records for b in seen)


def test_a_commit_moves_commits_and_offsets_together(topics: Topics) -> None:
    topics.send(*[f"k{n}" for n in range(20)])
    log = topics.log()
    own(log)
    done = 0
    for batch in gather(log, 20):
        if batch.records:
            ends = log.commit(batch, echo(batch))
            assert set(ends) == {r.partition for r in batch.records}
            done += len(batch.records)
    assert done == 20
    found = everything(topics, topics.events, 20)
    assert sorted(r.value for r in found) == sorted(f'did:"k{n}"'.encode() for n in range(20))
    committed = topics.broker.committed(topics.commands, topics.group, settled=True)
    assert sum(committed.values()) == 20


def test_settled_offsets_are_those_of_the_last_commit(topics: Topics) -> None:
    """Kafka acknowledges a transaction before it has written the offsets in it."""
    log = topics.log()
    own(log)
    for n in range(1, 21):
        topics.send("same")
        (batch,) = [b for b in gather(log, 1) if b.records]
        log.commit(batch, echo(batch))
        committed = topics.broker.committed(topics.commands, topics.group, settled=True)
        assert sum(committed.values()) == n


def test_the_end_of_a_commit_is_where_the_next_one_starts(topics: Topics) -> None:
    log = topics.log()
    own(log)
    ends: dict[int, int] = {}
    for _ in range(2):
        topics.send("same")
        (batch,) = [b for b in gather(log, 1) if b.records]
        partition = batch.records[0].partition
        ends = log.commit(batch, echo(batch))
    reader = topics.source(topics.events)
    reader.start(partition, 0)
    found = [r for b in gather(reader, 2) for r in b.records]
    assert ends[partition] == found[-1].offset + 1


def test_positions_pass_transaction_markers(topics: Topics) -> None:
    """Or a wait for the high watermark of a quiet partition never ends."""
    topics.send("a")
    log = topics.log()
    own(log)
    (batch,) = [b for b in gather(log, 1) if b.records]
    log.commit(batch, echo(batch))
    reader = topics.source(topics.events)
    ends = reader.ends()
    assert sum(ends.values()) == 1 + markers(topics.broker, 1), "one record and one marker"
    partition = batch.records[0].partition
    reader.start(partition, 0)
    positions: dict[int, int] = {}
    until(
        reader,
        lambda: positions.get(partition) == ends[partition],
        lambda b: positions.update(b.positions),
    )


def test_the_next_owner_goes_on_where_the_last_one_committed(topics: Topics) -> None:
    topics.send("a", "b", "c")
    first = topics.log("handler-0")
    own(first)
    for batch in gather(first, 3):
        if batch.records:
            first.commit(batch, echo(batch))
    first.close()
    topics.send("d")
    second = topics.log("handler-1")
    own(second)
    assert [r.key for b in gather(second, 1) for r in b.records] == [b"d"]


@pytest.mark.parametrize("point", [Failpoint.HANDLER_PRODUCED, Failpoint.HANDLER_OFFSETS])
def test_a_crash_inside_the_transaction_leaves_nothing(topics: Topics, point: Failpoint) -> None:
    topics.send("a")
    log = topics.log()
    own(log)
    (batch,) = [b for b in gather(log, 1) if b.records]
    with armed(point), pytest.raises(Crash):
        log.commit(batch, echo(batch))
    log.close()  # a dead process; its transactional id is taken over below
    again = topics.log()
    own(again)
    (repeated,) = [b for b in gather(again, 1) if b.records]
    assert [r.key for r in repeated.records] == [b"a"]
    again.commit(repeated, echo(repeated))
    reader = topics.source(topics.events)
    partition = batch.records[0].partition
    end = reader.ends()[partition]
    kept = 2 if markers(topics.broker, 1) else 0  # of what was aborted: a record and a marker
    assert end == kept + 1 + markers(topics.broker, 1), "the first aborted, the second committed"
    reader.start(partition, 0)
    found: list[Record] = []
    at = 0

    def take(b: Batch) -> None:
        nonlocal at
        found.extend(b.records)
        at = b.positions.get(partition, at)

    until(reader, lambda: at == end, take)
    assert [(r.offset, r.value) for r in found] == [(kept, b'did:"a"')]


def after_a_death(topics: Topics) -> tuple[CommandLog, int, int]:
    """The next owner of a partition whose offset is in a dead owner's open transaction."""
    topics.send("a")
    first = topics.log("handler-0")
    own(first)
    (batch,) = [b for b in gather(first, 1) if b.records]
    partition, offset = batch.records[0].partition, batch.records[0].offset
    with armed(Failpoint.HANDLER_OFFSETS), pytest.raises(Crash):
        first.commit(batch, echo(batch))
    first.close()
    second = topics.log("handler-1")
    owned: set[int] = set()
    until(second, lambda: len(owned) == PARTITIONS, lambda b: owned.update(b.assigned))
    with pytest.raises(Pending):
        second.start(partition)
    return second, partition, offset


def test_the_offsets_of_a_transaction_that_has_not_ended_are_pending(topics: Topics) -> None:
    """KIP-447: who takes over waits for them, or it would read the same commands again."""
    if isinstance(topics.broker, ON_MONGODB):
        pytest.skip("nobody sees what is in a transaction of MongoDB")
    second, partition, offset = after_a_death(topics)
    topics.log("handler-0").close()  # takes the transactional id over: what was open is undone
    assert second.start(partition) == offset


def test_the_ends_of_a_topic_are_its_high_watermarks(topics: Topics) -> None:
    """What an open transaction has written is below them: who takes over replays up to there, and
    what its predecessor committed is not forgotten though the markers are still on their way."""
    if isinstance(topics.broker, ON_MONGODB):
        pytest.skip("nobody sees what is in a transaction of MongoDB")
    reader = topics.source(topics.events)
    _, partition, _ = after_a_death(topics)
    assert reader.ends() == {p: int(p == partition) for p in range(PARTITIONS)}
    topics.log("handler-0").close()


@pytest.mark.slow  # until Kafka's time-out
def test_a_transaction_that_nobody_ends_is_over_after_a_while(topics: Topics) -> None:
    """Its owner is dead, and nobody takes its id over."""
    if isinstance(topics.broker, ON_MONGODB):
        pytest.skip("nobody waits for a transaction of MongoDB")
    second, partition, offset = after_a_death(topics)
    if isinstance(topics.broker, MemoryBroker):
        topics.broker.expire()
    started: list[int] = []

    def start(_: Batch) -> None:
        with suppress(Pending):
            started.append(second.start(partition))

    until(second, lambda: bool(started), start)
    assert started == [offset]
    (again,) = [b for b in gather(second, 1) if b.records]
    assert [r.offset for r in again.records] == [offset]
    second.commit(again, echo(again))
    assert [r.value for r in everything(topics, topics.events, 1)] == [b'did:"a"']


def test_the_first_fence_stops_a_zombie(topics: Topics) -> None:
    """The zombie has polled, lost its partitions to another member, and commits afterwards."""
    keys = [f"k{n}" for n in range(20)]
    assert {partition for partition, _ in topics.send(*keys)} == set(range(PARTITIONS))
    zombie = topics.log("handler-0")
    own(zombie)
    batch = Batch()  # of all partitions, some of which will move
    for some in gather(zombie, 20):
        batch.records += some.records
        batch.positions |= some.positions
        batch.fence = some.fence
    other = topics.log("handler-1")
    owned: set[int] = set()

    def take(b: Batch) -> None:
        owned.update(b.assigned)

    if isinstance(topics.broker, MemoryBroker):
        take(other.poll(10, 0))
    else:
        # The zombie goes on polling until it has given something up: then it is out of date.
        lost: set[int] = set()
        deadline = time.monotonic() + 45
        stop = threading.Event()

        def poll_other() -> None:
            while not stop.is_set():
                take(other.poll(10, 0.1))

        thread = threading.Thread(target=poll_other)
        thread.start()
        while not (lost and owned) and time.monotonic() < deadline:
            lost |= zombie.poll(10, 0.1).revoked
        stop.set()
        thread.join()
        assert lost, "no partition moved"
    with pytest.raises(Fenced):
        zombie.commit(batch, echo(batch))
    assert topics.broker.committed(topics.commands, topics.group, settled=True) == {}


def test_a_second_holder_of_a_transactional_id_fences_the_first(topics: Topics) -> None:
    topics.send("a")
    first = topics.log("handler-0")
    own(first)
    (batch,) = [b for b in gather(first, 1) if b.records]
    topics.broker.log(
        topics.commands, topics.events, f"{topics.group}.x", f"{topics.group}.handler-0"
    ).close()
    with pytest.raises(LabkitError):
        first.commit(batch, echo(batch))


def test_stop_and_start_go_back(topics: Topics) -> None:
    topics.send("a")
    reader = topics.source(topics.commands)
    partition = reader.partitions_for([b"a"])[0]
    for _ in range(2):
        reader.start(partition, 0)
        assert [r.value for b in gather(reader, 1) for r in b.records] == [b'"a"']
        reader.stop(partition)
    topics.send("a")
    assert not reader.poll(10, 0.5).records


def test_limit_is_kept(topics: Topics) -> None:
    topics.send(*["a"] * 7)
    reader = topics.source(topics.commands)
    reader.start(reader.partitions_for([b"a"])[0], 0)
    sizes: list[int] = []
    deadline = time.monotonic() + 20
    while sum(sizes) < 7:
        assert time.monotonic() < deadline
        sizes.append(len(reader.poll(3, 0.2).records))
    assert max(sizes) <= 3


def test_an_unknown_topic_is_named(broker: Broker) -> None:
    with pytest.raises(Unreachable, match=r"no\.such"):
        broker.source("no.such")


def test_create_again_and_drop(topics: Topics) -> None:
    topics.broker.create({topics.commands: PARTITIONS})
    assert {topics.commands, topics.events} <= set(topics.broker.topics())
    topics.broker.drop([topics.events, "never.was"])
    deadline = time.monotonic() + 10
    while topics.events in topics.broker.topics():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_that_fell_out_of_its_group_commits_nothing(topics: Topics) -> None:
    """kafka-python forgets its generation then, and Kafka checks none that is not given."""
    log = topics.log()
    if not hasattr(log, "_consumer") or not hasattr(log._consumer, "group_metadata"):
        return  # the twin and librdkafka keep theirs
    topics.send("a")
    own(log)
    (batch,) = [b for b in gather(log, 1) if b.records]
    log._consumer._coordinator.reset_generation()
    batch.fence = log._consumer.group_metadata()
    with pytest.raises(Fenced):
        log.commit(batch, echo(batch))
    assert topics.broker.committed(topics.commands, topics.group, settled=True) == {}


def test_a_reader_goes_to_and_fro_between_partitions(topics: Topics) -> None:
    """It leaves one with records at hand that it has not taken yet, and comes back elsewhere."""
    sender = topics.broker.sender()
    for n in range(10_000):
        sender.send(topics.commands, b"k%d" % (n % 50), b"x" * 200)
    sender.flush(30)
    sender.close()
    reader = topics.source(topics.commands)
    ends = reader.ends()
    rng = Random(3)
    for _ in range(60):
        partition = rng.choice((1, 2))
        start = rng.randrange(ends[partition] - 1)
        stop = rng.choice((start + 1, ends[partition]))
        got: list[int] = []
        deadline = time.monotonic() + 15
        reader.start(partition, start)
        while len(got) < stop - start:
            assert time.monotonic() < deadline, f"partition {partition} stands still, from {start}"
            got += [r.offset for r in reader.poll(500, 0.2).records]
        assert got[: stop - start] == list(range(start, stop))
        reader.stop(partition)


def test_a_partition_that_stays_goes_on_where_it_was(topics: Topics) -> None:
    """Others join and leave; nobody is given again what was given, nor is anything passed over."""
    source = topics.source(topics.commands, topics.group)
    own(source)
    seen: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    moved: set[int] = set()

    def take(batch: Batch) -> None:
        moved.update(batch.revoked)
        for record in batch.records:
            seen[record.partition].append(record.offset)

    sent = topics.send(*[f"k{n}" for n in range(400)])
    until(source, lambda: sum(map(len, seen.values())) == len(sent), take)
    other = topics.source(topics.commands, topics.group)
    joined = threading.Event()
    owned: set[int] = set()

    def poll_other() -> None:
        while not joined.is_set():
            owned.update(other.poll(10, 0.1).assigned)
        other.close()

    thread = threading.Thread(target=poll_other)
    if isinstance(topics.broker, MemoryBroker):
        owned.update(other.poll(10, 0).assigned)
        other.close()
        source.poll(10, 0)
        joined.set()
    thread.start()
    until(source, lambda: bool(owned), take)
    joined.set()
    thread.join()
    back: set[int] = set()

    def take_back(batch: Batch) -> None:
        take(batch)
        back.update(batch.assigned)

    deadline = time.monotonic() + 5  # long enough for all that could come again
    until(source, lambda: time.monotonic() > deadline, take_back)
    stayed = set(range(PARTITIONS)) - moved - owned
    for partition in stayed:
        assert seen[partition] == sorted(set(seen[partition])), f"partition {partition} came again"
    again = topics.send(*[f"k{n}" for n in range(400)])
    wanted = [offset for partition, offset in sent + again if partition in stayed]
    until(source, lambda: sum(len(seen[p]) for p in stayed) >= len(wanted), take)
    assert sorted(o for p in stayed for o in seen[p]) == sorted(wanted)


@pytest.mark.parametrize("broker", ["kafka-python"], indirect=True)
def test_a_join_that_polls_were_too_short_for_is_not_forgotten(topics: Topics) -> None:
    """kafka-python does forget it: without heartbeats, it spins, and another takes over."""
    source = topics.source(topics.events, topics.group)
    own(source)
    consumer = source._consumer  # type: ignore[attr-defined]
    consumer._coordinator._assignment_snapshot = {}  # as if the topic's metadata had changed
    deadline = time.monotonic() + 10
    while consumer.group_metadata().state != MemberState.REBALANCING:
        assert time.monotonic() < deadline
        source.poll(1, 0)
    time.sleep(0.5)  # the join is answered, and nobody listens
    while consumer.group_metadata().state != MemberState.STABLE:
        assert time.monotonic() < deadline
        source.poll(1, 0.05)


@pytest.mark.parametrize(
    ("answer", "session"),
    [("1000", 3_000), ("10000", 10_000), (ClusterAuthorizationFailedError(), 6_000)],
)
def test_a_session_is_as_short_as_the_broker_allows(
    answer: str | Exception, session: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker whose settings nobody may ask for has the default."""

    class Admin:
        def describe_cluster(self) -> dict[str, Any]:
            return {"brokers": [{"broker_id": 7}]}

        def describe_configs(self, asked: Any, config_filter: str) -> dict[str, Any]:
            if isinstance(answer, Exception):
                raise answer
            return {"broker": {"7": {"group.min.session.timeout.ms": {"value": answer}}}}

    monkeypatch.setattr(KafkaPythonBroker, "_admin", lambda _: Admin())
    assert KafkaPythonBroker("h:1").session_ms == session
