"""Reading the log: to its end at the time of the call, a stream, a stream at a version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from labkit.adapters.memory import MemoryBroker
from labkit.errors import TimedOut, UsageError
from labkit.lab import Lab
from labkit.log.event_log import HISTORY, EventLog
from labkit.log.partition import READ_TIMEOUT, join_group, read_partition
from labkit.messages import Event, encode
from labkit.ports.broker import Batch
from labkit.services.catalog import ListProduct
from labkit.services.orders import (
    OrderPaid,
    OrderPlaced,
    OrderShipped,
    PayOrder,
    PlaceOrder,
    ShipOrder,
)
from labkit.teaching import looking, views
from tests.built_in import SERVICES
from tests.test_handlers import Rig, place
from tests.test_service import project, work
from tests.test_waiting import START, Waiting

ORDERS = SERVICES["orders"]


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
    assert log(rig).state("o1") == at[3]
    assert log(rig).state("never") is log(rig).state("never", 0) is None


@pytest.mark.parametrize(
    ("stream", "asked", "says"),
    [
        ("o1", {"version": 4}, "'o1' has no version 4, its newest is 3"),
        ("o1", {"version": 10**30}, "its newest is 3"),
        ("never", {"version": 1}, "'never' has no version 1, its newest is 0"),
        ("o1", {"version": -1}, "version must be at least 0, got -1"),
        ("o1", {"at": datetime(2026, 1, 31)}, r"at needs a time zone, got 2026-01-31 00:00:00"),
        ("o1", {"version": 2, "at": datetime.now(UTC)}, "not both: got 2 and 20"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_question_that_has_no_answer_is_refused(
    rig: Rig, stream: str, asked: dict[str, Any], says: str, stored: bool
) -> None:
    asking = EventLog(ORDERS, rig.broker.source("events"), rig.store if stored else None)
    with pytest.raises(UsageError, match=says):
        asking.state(stream, **asked)
    assert asking.state("o1"), "the log can be read after that"


# --- instants


MINUTE = 60_000
HOUR = 60 * MINUTE


def tag(event: type[Event]) -> str:
    """The type on the wire."""
    return str(event.__struct_config__.tag)


def instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


@pytest.fixture
def paid_later() -> Waiting:
    """Placed at once, paid after an hour, shipped after two."""
    rig = Waiting()
    for command in (place("o1"), PayOrder("o1", 5), ShipOrder("o1")):
        rig.send(command)
        rig.step()
        rig.calendar.at += HOUR
    return rig


def status(rig: Rig, at: datetime) -> str | None:
    state = log(rig).state("o1", at=at)
    return f"{state.status}, {state.payment}" if state else None


def test_the_state_at_an_instant(paid_later: Waiting) -> None:
    found = [
        status(paid_later, instant(START + ms))
        for ms in (-1, 0, 1, HOUR - 1, HOUR, 2 * HOUR, 100 * HOUR)
    ]
    placed, paid, shipped = "placed, unpaid", "placed, paid", "shipped, paid"
    assert found == [None, placed, placed, placed, paid, shipped, shipped]


def test_an_instant_may_be_given_in_any_time_zone(paid_later: Waiting) -> None:
    paid = instant(START + HOUR).astimezone(timezone(timedelta(hours=-7)))
    assert status(paid_later, paid) == "placed, paid"
    assert status(paid_later, paid - timedelta(microseconds=1)) == "placed, unpaid"


def test_where_the_clock_went_back_the_prefix_ends_at_the_first_later_commit() -> None:
    """What was decided after a commit is never seen without it, whatever the clock said."""
    rig = Waiting()
    for command, at in ((place("o1"), 0), (PayOrder("o1", 5), HOUR), (ShipOrder("o1"), MINUTE)):
        rig.calendar.at = START + at
        rig.send(command)
        rig.step()
    assert status(rig, instant(START + 2 * MINUTE)) == "placed, unpaid"
    assert status(rig, instant(START + HOUR)) == "shipped, paid"


# --- the history


def test_the_history_of_a_stream(paid_later: Waiting) -> None:
    paid_later.send(PayOrder("o1", 5), id="again")
    paid_later.step()
    rows = log(paid_later).history("o1")
    assert [list(row) for row in rows] == [HISTORY] * 4
    assert [(r["version"], r["event"], r["outcome"]) for r in rows] == [
        (1, tag(OrderPlaced), "accepted"),
        (2, tag(OrderPaid), "accepted"),
        (3, tag(OrderShipped), "accepted"),
        (3, None, "refused"),
    ]
    assert [r["at"] for r in rows] == [instant(START + n * HOUR) for n in range(4)]
    assert rows[1]["fields"]["order_id"] == "o1"
    assert rows[1]["fields"]["cents"] == 5
    assert rows[3]["fields"] == {}
    assert (rows[3]["command"], rows[3]["reason"]) == ("again", "order 'o1' is shipped")
    assert log(paid_later).history("never") == []


def test_each_row_of_the_history_leads_back_to_its_state(paid_later: Waiting) -> None:
    for row in log(paid_later).history("o1"):
        at = log(paid_later).state("o1", at=row["at"])
        assert at == log(paid_later).state("o1", version=row["version"])


def test_the_history_as_a_table() -> None:
    with Lab(backend="memory") as lab:
        assert list(lab.history("o1").columns) == HISTORY
        lab.bus.send(place("o1"))
        lab.bus.send(place("o1"))
        lab.handler.step(0)
        table = lab.history("o1")
        assert table["outcome"].tolist() == ["accepted", "refused"]
        assert str(table["at"].dt.tz) == "UTC"
        lab.bus.send(ListProduct("p", "a pen", 9))
        lab.by_hand("handler", "catalog").step(0)
        assert lab.history("product-p", "catalog")["event"].tolist() == ["ProductListed"]


def test_reading_ends_where_the_log_ended_at_the_call(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rig.broker.source("events")
    assert sum(map(len, read_partition(source, 0))) > 2
    monkeypatch.setattr(source, "ends", lambda: {0: 2})  # since then more has come
    assert [r.offset for records in read_partition(source, 0) for r in records] == [0, 1]


def test_a_reading_that_was_broken_off_blocks_no_other() -> None:
    with Lab(backend="memory", services=["orders"], partitions=1) as lab:
        for n in range(3):
            lab.bus.send(PlaceOrder(f"o{n}", "ann", "1997-01-31", 1, 5))
        work(lab, wait=0)
        log = lab.log()
        broken = log.commits()
        assert next(broken).stream == "o0"
        assert [commit.stream for commit in log.commits()] == ["o0", "o1", "o2"]
        with pytest.raises(UsageError, match="another reading of this log has begun"):
            next(broken)
        unfinished = log.commits()
        next(unfinished)
        assert log.state("o2").cents == 5
        del unfinished, broken
        assert len(list(log.commits())) == 3


@pytest.mark.parametrize("value", [b"noise", b"", b"[1]", b'{"id":7}', b'"text"', b"\xff"])
def test_who_looks_at_a_topic_is_no_stricter_than_the_handler(value: bytes) -> None:
    with Lab(backend="memory", services=["orders"], partitions=1) as lab:
        for topic in ("orders.commands", "orders.events"):
            lab.broker.sender().send(lab.topic_name(topic), b"other", value).result(1)
        lab.bus.send(PlaceOrder("o1", "ann", "1997-01-31", 1, 5))
        work(lab, wait=0)
        project(lab, wait=0)
        assert "PlaceOrder" in lab.film("o1")._repr_svg_()
        shown = looking.commands(lab)
        assert shown["order"].to_list() == ["other", "o1"]
        assert shown["command"].iloc[1] == "PlaceOrder"
        made = looking.commits(lab)
        assert made["outcome"].iloc[-1] == "accepted"
        assert looking.commits(lab, "o1")["events"].to_list() == ["OrderPlaced.v2"]
        assert [event["type"] for event in views.events(lab)] == ["OrderPlaced.v2"]
        assert len(lab.topic("orders.commands")) == 2


def test_reading_an_empty_partition_ends_at_once() -> None:
    broker = MemoryBroker()
    broker.create({"events": 1})
    assert list(read_partition(broker.source("events"), 0)) == []


def test_a_reader_stops_its_partition_when_it_is_done(rig: Rig) -> None:
    source = rig.broker.source("events")
    assert list(read_partition(source, 0))
    rig.broker.append("events", 0, b"x", b"later", None)
    assert source.poll(100, 0) == Batch()


def test_an_open_transaction_is_waited_for_and_then_named(rig: Rig) -> None:
    rig.broker.initialise("t")
    transaction = rig.broker.begin("t", 1)
    at = rig.broker.append("events", 0, b"x", b"pending", transaction)
    with pytest.raises(TimedOut, match=rf"read to offset {at} of {at + 1}.*transaction is open"):
        list(read_partition(rig.broker.source("events"), 0, timeout=0.05))
    rig.broker.end("t", "aborted")
    assert sum(map(len, read_partition(rig.broker.source("events"), 0, timeout=0.05)))


def test_joining_waits_for_as_many_partitions_and_no_longer_than_told() -> None:
    broker = MemoryBroker()
    broker.create({"commands": 3})
    first = broker.source("commands", "g")
    assert join_group(first, 3) == frozenset({0, 1, 2})
    second = broker.source("commands", "g")
    with pytest.raises(TimedOut, match=r"got 1 of 3 partitions within 0\.05 s"):
        join_group(second, 3, timeout=0.05)
    assert READ_TIMEOUT > 20, "longer than a dead worker's transaction stays open"
