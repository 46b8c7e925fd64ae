"""Reading the log: to its end at the time of the call, a stream, a stream at a version."""

from __future__ import annotations

import pytest

from labkit import eventlog
from labkit.adapters.memory import MemoryBroker
from labkit.domain.orders import PayOrder, ShipOrder
from labkit.errors import TimedOut
from labkit.eventlog import EventLog, join, read
from labkit.handlers import CONTEXTS
from labkit.messages import encode
from labkit.ports import Batch
from tests.test_handlers import Rig, place

ORDERS = CONTEXTS["orders"]


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    handler = made.handler()
    for n in range(6):
        made.send(place(f"o{n}"))
    made.send(PayOrder("o1", 5))
    made.send(PayOrder("o1", 5))  # refused: it is paid already
    made.send(ShipOrder("o1"))
    handler.step(0)
    return made


def log(rig: Rig) -> EventLog:
    return EventLog(ORDERS, rig.broker.source("events"))


def test_all_commits_partition_by_partition(rig: Rig) -> None:
    found = list(log(rig).commits())
    assert len(found) == 9
    assert [c.partition for c in found] == sorted(c.partition for c in found)
    assert list(log(rig).partition(0)) == [c for c in found if c.partition == 0]
    assert list(log(rig).partition(0, start=2)) == [c for c in found if c.partition == 0][2:]


def test_what_is_not_a_commit_is_passed_over(rig: Rig) -> None:
    rig.broker.append("events", 0, b"x", b"noise", None)
    assert len(list(log(rig).commits())) == 9


def test_a_stream_has_its_accepted_and_its_refused_commits(rig: Rig) -> None:
    found = log(rig).stream("o1")
    assert [(c.outcome, c.first, c.last) for c in found] == [
        ("accepted", 1, 1),
        ("accepted", 2, 2),
        ("refused", 3, 2),
        ("accepted", 3, 3),
    ]
    assert log(rig).stream("never") == []


def test_a_stream_leaves_out_what_a_zombie_wrote(rig: Rig) -> None:
    found = log(rig).stream("o1")
    stale = found[1]
    rig.broker.append("events", stale.partition, b"o1", encode(stale), None)
    assert log(rig).stream("o1") == found


def test_the_state_at_a_version(rig: Rig) -> None:
    at = [log(rig).state("o1", version) for version in range(4)]
    assert at[0] is None
    assert [(s.status, s.payment) for s in at[1:]] == [
        ("placed", "unpaid"),
        ("placed", "paid"),
        ("shipped", "paid"),
    ]
    assert log(rig).state("o1") == log(rig).state("o1", 99) == at[3]
    assert log(rig).state("never") is None


def test_reading_ends_where_the_log_ended_at_the_call(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rig.broker.source("events")
    assert sum(map(len, read(source, 0))) > 2
    monkeypatch.setattr(source, "ends", lambda: {0: 2})  # since then more has come
    assert [r.offset for records in read(source, 0) for r in records] == [0, 1]


def test_reading_an_empty_partition_ends_at_once() -> None:
    broker = MemoryBroker()
    broker.create({"events": 1})
    assert list(read(broker.source("events"), 0)) == []


def test_a_reader_stops_its_partition_when_it_is_done(rig: Rig) -> None:
    source = rig.broker.source("events")
    assert list(read(source, 0))
    rig.broker.append("events", 0, b"x", b"later", None)
    assert source.poll(100, 0) == Batch()


def test_an_open_transaction_is_waited_for_and_then_named(rig: Rig) -> None:
    rig.broker.initialise("t")
    transaction = rig.broker.begin("t", 1)
    at = rig.broker.append("events", 0, b"x", b"pending", transaction)
    with pytest.raises(TimedOut, match=rf"read to offset {at} of {at + 1}.*transaction is open"):
        list(read(rig.broker.source("events"), 0, timeout=0.05))
    rig.broker.end("t", "aborted")
    assert sum(map(len, read(rig.broker.source("events"), 0, timeout=0.05)))


def test_joining_waits_for_as_many_partitions_and_no_longer_than_told() -> None:
    broker = MemoryBroker()
    broker.create({"commands": 3})
    first = broker.source("commands", "g")
    assert join(first, 3) == frozenset({0, 1, 2})
    second = broker.source("commands", "g")
    with pytest.raises(TimedOut, match=r"got 1 of 3 partitions within 0\.05 s"):
        join(second, 3, timeout=0.05)
    assert eventlog.READ_TIMEOUT > 20, "longer than a dead worker's transaction stays open"
