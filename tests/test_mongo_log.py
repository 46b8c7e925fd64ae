"""What only the log on MongoDB can get wrong; the rest is in the contract suite."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs
from pymongo.errors import ExecutionTimeout, OperationFailure

from labkit import stack
from labkit.adapters import mongo_command_log, mongo_records, mongo_sender
from labkit.adapters.mongo import translated
from labkit.adapters.mongo_log import MongoBroker, MongoLog
from labkit.adapters.mongo_sender import MongoDelivery, MongoSender
from labkit.errors import Fenced, OutcomeUnknown, Unreachable
from labkit.lab import Lab
from labkit.messages import MAX_COMMAND_BYTES, Commit, encode
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Record
from labkit.ports.failpoints import Crash, Failpoint, armed
from labkit.services.orders import PlaceOrder, ShipOrder
from tests.contracts.test_broker import PARTITIONS, Topics, everything, gather, own, until

pytestmark = pytest.mark.servers

COMMIT: Commit[Any] = Commit(
    stream="o", id="c", partition=0, offset=0, outcome="accepted", first=1, last=1, events=({},)
)
LARGE = b"x" * MAX_COMMAND_BYTES


@pytest.fixture
def topics(servers: stack.Servers) -> Iterator[Topics]:
    broker = MongoBroker(servers.mongo_uri, f"log_{uuid.uuid4().hex[:8]}")
    made = Topics(broker)
    yield made
    for source in made.opened:
        source.close()
    broker._client.drop_database(broker._db)
    broker.close()


def record(commit: Commit[Any]) -> Record:
    return Record(commit.partition, 0, commit.stream.encode(), encode(commit))


def owner(topics: Topics, id: str = "handler-0") -> tuple[MongoLog, Batch]:
    """A log that owns all partitions, and a batch without records under its fence."""
    log = topics.log(id)
    assert isinstance(log, MongoLog)
    own(log)
    return log, log.poll(1, 0)


# --- what is unique


@pytest.mark.parametrize(
    ("again", "says"),
    [
        # Another decision on the same version, as a zombie would write it.
        (structs.replace(COMMIT, id="d", offset=1), "another owner has already committed it"),
        # The same command for the second time, whatever it came to.
        (
            structs.replace(COMMIT, stream="p", outcome="refused", last=0, events=()),
            "another owner has already committed it",
        ),
    ],
    ids=["version", "command"],
)
def test_the_indexes_refuse_a_second_one(topics: Topics, again: Commit[Any], says: str) -> None:
    log, batch = owner(topics)
    log.commit(batch, [record(COMMIT)])
    with pytest.raises(Fenced, match=says):
        log.commit(batch, [record(again)])
    assert log.events().ends()[0] == 1


def test_what_may_come_again_is_let_in(topics: Topics) -> None:
    """A command that waits has several commits; a used id that was forgotten is decided anew."""
    log, batch = owner(topics)
    waits = structs.replace(COMMIT, stream="w", outcome="parked", last=0, events=())
    log.commit(batch, [record(waits), record(waits)])
    log.commit(batch, [record(COMMIT)])
    log.commit(batch, [record(structs.replace(COMMIT, offset=1, first=2, last=2))])
    log.commit(batch, [Record(0, 0, b"x", b"noise"), Record(0, 0, b"x", b"noise")])
    assert log.events().ends()[0] == 6


def test_what_is_sent_is_never_taken_for_a_commit(topics: Topics) -> None:
    """Or one client's copy of a commit would make the sends of others fail with its own."""
    sender = topics.broker.sender()
    sent = [sender.send(topics.commands, b"o", encode(COMMIT)) for _ in range(2)]
    sent.append(sender.send(topics.commands, b"o", b"{}"))
    assert [at.result(20)[1] for at in sent] == [0, 1, 2]
    sender.close()


def test_at_least_once_does_a_batch_again_after_a_crash(servers: stack.Servers) -> None:
    """The second commit of the same command says that it is a repetition."""
    with Lab(services=["orders"], log="mongodb", delivery="at_least_once", start=False) as lab:
        lab.bus.listen("orders")
        lab.bus.send(PlaceOrder("o", "ada", "2026-01-31", quantity=1, cents=100)).token()
        with armed(Failpoint.HANDLER_PRODUCED), pytest.raises(Crash):
            lab.handler.step()
        assert [commit.outcome for commit in lab.handler.step()] == ["repeated"]
        lab.bus.send(ShipOrder("o")).token()
        assert [commit.outcome for commit in lab.handler.step()] == ["refused"]
        lab.drop()


def test_a_batch_is_handled_again_where_somebody_has_set_the_offsets_back(
    servers: stack.Servers,
) -> None:
    """The index of commands fenced each new owner, and the partition stood still for ever."""
    with Lab(services=["orders"], log="mongodb", start=False) as lab:
        lab.bus.listen("orders")
        for number, id in enumerate(["first", "second"]):
            order = PlaceOrder("o", "ada", "2026-01-31", quantity=1, cents=100 + number)
            lab.bus.send(order, id=id).token()
        assert [commit.outcome for commit in lab.handler.step()] == ["accepted", "refused"]
        assert isinstance(lab.log_broker, MongoBroker)
        lab.log_broker._db["log.groups"].update_many({}, {"$set": {"offset": 0}})
        with Lab(run=lab.run, start=False) as later:
            assert [c.outcome for c in later.handler.step()] == ["repeated"] * 2
        lab.drop()


# --- the fence


def test_nobody_takes_a_partition_over_in_the_middle_of_a_commit(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the offset stays, as with a command that has waited: MongoDB leaves out a write
    that changes nothing, and then it would fence nobody."""
    log, batch = owner(topics)
    log.commit(batch, [record(COMMIT)])
    groups = log._db["log.groups"]
    tried: list[str] = []

    def take_over(point: Failpoint) -> None:
        if point is not Failpoint.HANDLER_OFFSETS:
            return
        try:
            log._client.admin.command("ping")
            log._db.command(
                "update",
                groups.name,
                updates=[{"q": {"owner": log._member}, "u": {"$set": {"owner": "me"}}}],
                maxTimeMS=500,
            )
        except ExecutionTimeout:
            tried.append("has to wait")
        else:
            tried.append("done")

    monkeypatch.setattr(mongo_command_log, "hit", take_over)
    log.commit(batch, [record(structs.replace(COMMIT, offset=1, first=2, last=2))])
    assert tried == ["has to wait"]


def test_a_member_that_is_out_commits_nothing(topics: Topics) -> None:
    zombie, _ = owner(topics)
    topics.send("a")
    (batch,) = [b for b in gather(zombie, 1) if b.records]
    # It does nothing for as long as a session lasts, by the server's clock.
    zombie._db["log.members"].update_one(
        {"_id": zombie._member}, [{"$set": {"seen": {"$subtract": ["$seen", 60_000]}}}]
    )
    owner(topics, "handler-1")
    with pytest.raises(Fenced, match="has another owner"):
        zombie.commit(batch, [record(COMMIT)])
    assert zombie.events().ends()[0] == 0
    lost: set[int] = set()
    until(zombie, lambda: len(lost) > 0, lambda b: lost.update(b.revoked))


# --- readers and senders


def test_a_busy_partition_does_not_hold_up_the_others(topics: Topics) -> None:
    sender = topics.broker.sender()
    for partition in (0, 1):
        for _ in range(4):
            sender.send(topics.commands, b"k", b"v", partition)
    sender.flush(20)
    sender.close()
    reader = topics.source(topics.commands)
    for partition in (0, 1):
        reader.start(partition, 0)
    seen = [{r.partition for r in reader.poll(2, 1).records} for _ in range(2)]
    assert seen == [{0}, {1}]


def test_the_gaps_of_an_undone_batch_are_closed(topics: Topics) -> None:
    """Offsets are drawn in the transaction that is undone, so they are drawn again."""
    log, batch = owner(topics)
    with armed(Failpoint.HANDLER_PRODUCED), pytest.raises(Crash):
        log.commit(batch, [record(COMMIT)])
    log.commit(batch, [record(COMMIT)])
    assert [r.offset for r in everything(topics, topics.events, 1)] == [0]


def test_many_large_records_go_out_in_several_transactions(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one transaction is as long as the queue, and undone by the server each time.

    The queue is bounded: who sends faster than MongoDB takes, waits, and at last is told.
    """
    sizes: list[int] = []
    queued = threading.Event()

    def append(*args: Any) -> Any:
        queued.wait(20)
        sizes.append(sum(len(r.value) for r in args[3]))
        return written(*args)

    written = mongo_records.append
    monkeypatch.setattr(mongo_sender, "append", append)
    sender = topics.broker.sender()
    assert isinstance(sender, MongoSender)
    sent = [sender.send(topics.commands, b"k", LARGE) for _ in range(24)]
    monkeypatch.setattr(mongo_sender, "MOST_WAITING_BYTES", 24 * len(LARGE))
    monkeypatch.setattr(mongo_sender, "ROOM_SECONDS", 0.01)
    with pytest.raises(Unreachable, match="bytes wait for MongoDB, and no room came"):
        sender.send(topics.commands, b"k", LARGE)
    monkeypatch.setattr(mongo_sender, "ROOM_SECONDS", 20.0)
    later = threading.Timer(0.1, queued.set)
    later.start()
    sent.append(sender.send(topics.commands, b"k", LARGE))  # it waits for room
    assert [delivery.result(20)[1] for delivery in sent] == list(range(25))
    sender.flush(20)
    assert sender._bytes == 0
    sender.close()
    assert max(sizes) < MAX_BATCH_BYTES + len(LARGE)


@pytest.mark.parametrize("before", [True, False], ids=["what was there", "what comes"])
def test_the_relay_is_given_many_large_records_in_parts(topics: Topics, before: bool) -> None:
    """And what is saved after one of them leads to the next one."""
    broker = topics.broker
    assert isinstance(broker, MongoBroker)
    published = dict.fromkeys(range(PARTITIONS), 0)
    changes = broker.changes(topics.commands)
    if not before:
        changes.start(published)
    sender = broker.sender()
    for number in range(20):
        sender.send(topics.commands, b"k", LARGE, number % PARTITIONS)
    sender.flush(30)
    sender.close()
    if before:
        changes.start(published)
    sizes: list[int] = []
    while True:
        records = changes.poll(2_000, 10)
        assert records, "nothing came"
        sizes.append(sum(len(r.value) for r in records))
        for record in records:
            assert record.offset == published[record.partition]
            published[record.partition] += 1
        changes.save()
        changes.close()
        if sum(published.values()) == 20:
            break
        changes = broker.changes(topics.commands)
        changes.start(published)
    assert max(sizes) < MAX_BATCH_BYTES + len(LARGE)


def test_a_server_that_is_gone_is_unreachable(topics: Topics) -> None:
    gone = MongoBroker("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200", "gone")
    with pytest.raises(Unreachable):
        gone.topics()
    gone.close()
    silent = MongoDelivery("t", Record(0, 0, b"", b""))
    with pytest.raises(Unreachable, match="did not answer within"):
        silent.result(0.01)


def test_a_commit_that_no_majority_answered_may_have_happened() -> None:
    details = {"errorLabels": ["UnknownTransactionCommitResult"]}
    with pytest.raises(OutcomeUnknown), translated("commit"):
        raise OperationFailure("waiting for replication timed out", 64, details)


def test_leaving_a_server_that_is_gone_is_quiet(servers: stack.Servers) -> None:
    """Whoever closes after a failure has an error to tell already."""
    broker = MongoBroker(servers.mongo_uri, f"log_{uuid.uuid4().hex[:8]}")
    broker.create({"t": 1})
    member = broker.source("t", "g")
    own(member, 1)
    broker._client.drop_database(broker._db)
    broker.close()
    member.close()
