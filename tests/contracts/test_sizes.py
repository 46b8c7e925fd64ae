"""What is large, and what is too large: single records, and batches of them."""

from __future__ import annotations

import time

import pytest

from labkit.adapters.memory import MemoryBroker
from labkit.errors import Unreachable
from labkit.messages import MAX_COMMAND_BYTES, MAX_ID
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Record
from labkit.write.decisions import MAX_COMMIT_BYTES
from tests.contracts.test_broker import (  # noqa: F401
    PARTITIONS,
    Topics,
    broker,
    everything,
    gather,
    own,
    topics,
)

pytestmark = [pytest.mark.contract, pytest.mark.servers]


def send(topics: Topics, *values: bytes, partitions: int = PARTITIONS) -> None:
    """Over all partitions in turn, with the longest key."""
    sender = topics.broker.sender()
    key = "订".encode() * MAX_ID
    sent = [
        sender.send(topics.commands, key, value, number % partitions)
        for number, value in enumerate(values)
    ]
    sender.flush(30)
    for delivery in sent:
        delivery.result(30)
    sender.close()


@pytest.mark.parametrize("size", [MAX_COMMAND_BYTES, MAX_COMMIT_BYTES], ids=["command", "commit"])
def test_the_largest_record_is_sent_and_read(topics: Topics, size: int) -> None:
    """A sender sends commands, and for the relay commits."""
    value = b"x" * size
    send(topics, value, value)
    assert [r.value == value for r in everything(topics, topics.commands, 2)] == [True, True]


def test_the_largest_commit_is_written_and_read(topics: Topics) -> None:
    send(topics, b"{}")
    log = topics.log()
    own(log)
    (batch,) = [b for b in gather(log, 1) if b.records]
    value = b"x" * MAX_COMMIT_BYTES
    log.commit(batch, [Record(0, 0, b"k", value)])
    assert [r.value == value for r in everything(topics, topics.events, 1)] == [True]


def test_what_nothing_can_hold_is_an_error_of_ours(topics: Topics) -> None:
    if isinstance(topics.broker, MemoryBroker):
        return  # it holds anything
    with pytest.raises(Unreachable):
        send(topics, b"x" * (17 << 20))


def test_a_batch_of_large_records_ends_before_its_limit(topics: Topics) -> None:
    """And the next one goes on with the record that follows."""
    value = b"x" * MAX_COMMAND_BYTES
    topics.broker.drop([topics.commands])
    topics.commands += ".wide"
    topics.broker.create({topics.commands: 10})
    send(topics, *[value] * 20, partitions=10)
    reader = topics.source(topics.commands)
    for partition in range(10):
        reader.start(partition, 0)
    time.sleep(2)  # long enough for a client that reads ahead
    batches = gather(reader, 20)
    assert max(sum(len(r.value) for r in b.records) for b in batches) < MAX_BATCH_BYTES + len(value)
    seen: dict[int, list[int]] = {partition: [] for partition in range(10)}
    for batch in batches:
        for record in batch.records:
            seen[record.partition].append(record.offset)
        for partition in {r.partition for r in batch.records}:
            assert batch.positions[partition] == seen[partition][-1] + 1
    assert seen == {partition: [0, 1] for partition in range(10)}


@pytest.mark.parametrize("broker", ["confluent"], indirect=True)
def test_more_commits_than_the_client_queues_wait(topics: Topics) -> None:
    """librdkafka queues 100,000 records by default, and counts those not yet heard of."""
    count = 100_001
    log = topics.log()
    own(log)
    ends = log.commit(Batch(fence=log.poll(1, 0).fence), [Record(0, 0, b"k", b"{}")] * count)
    assert ends == {0: count}
