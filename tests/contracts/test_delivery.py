"""The three delivery levels, by what a crash between the two writes leaves behind."""

from __future__ import annotations

import pytest

from labkit.ports.broker import CommandLog, Delivery, Record
from labkit.ports.failpoints import Crash, Failpoint, armed
from tests.contracts.test_broker import (  # noqa: F401
    Topics,
    broker,
    echo,
    everything,
    gather,
    own,
    topics,
)

pytestmark = [pytest.mark.contract, pytest.mark.servers]


def made(topics: Topics, delivery: Delivery, slot: int) -> CommandLog:
    log = topics.broker.log(
        topics.commands, topics.events, topics.group, f"{topics.group}.{slot}", delivery
    )
    topics.opened.append(log)
    return log


def crash(topics: Topics, delivery: Delivery, point: Failpoint) -> tuple[list[bytes], list[bytes]]:
    """A handler that dies at ``point``, then a second one: what it is given, what readers see."""
    topics.send("a")
    first = made(topics, delivery, 0)
    own(first)
    (batch,) = [b for b in gather(first, 1) if b.records]
    with armed(point), pytest.raises(Crash):
        first.commit(batch, echo(batch))
    first.close()
    # The same id: as a supervisor starts it again, which ends an open transaction.
    second = made(topics, delivery, 0)
    own(second)
    topics.send("b")
    given: list[Record] = []
    while not given or given[-1].key != b"b":
        for batch in gather(second, 1):
            if batch.records:
                second.commit(batch, echo(batch))
                given += batch.records
    a, b = (topics.source(topics.commands).partitions_for([key])[0] for key in (b"a", b"b"))
    assert a != b or [r.key for r in given] == sorted(r.key for r in given)
    count = len(given) + (delivery == "at_least_once")
    return sorted(r.key for r in given), sorted(
        r.value for r in everything(topics, topics.events, count)
    )


def test_at_most_once_loses_what_was_under_way(topics: Topics) -> None:
    given, seen = crash(topics, "at_most_once", Failpoint.HANDLER_OFFSETS)
    assert given == [b"b"]
    assert seen == [b'did:"b"']


def test_at_least_once_does_it_again(topics: Topics) -> None:
    given, seen = crash(topics, "at_least_once", Failpoint.HANDLER_PRODUCED)
    assert given == [b"a", b"b"]
    assert seen == [b'did:"a"', b'did:"a"', b'did:"b"']


@pytest.mark.parametrize("point", [Failpoint.HANDLER_PRODUCED, Failpoint.HANDLER_OFFSETS])
def test_exactly_once_leaves_no_trace_and_does_it_again(
    topics: Topics,
    point: Failpoint,
) -> None:
    given, seen = crash(topics, "exactly_once", point)
    assert given == [b"a", b"b"]
    assert seen == [b'did:"a"', b'did:"b"']
