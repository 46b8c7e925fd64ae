"""Kafka through confluent-kafka (librdkafka): for those who need the speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
except ImportError as error:  # pragma: no cover - an optional extra
    from labkit.errors import UsageError

    raise UsageError(
        "the client 'confluent' is not installed; run: pip install 'cqrs-labkit[confluent]'"
    ) from error

from labkit.adapters.kafka import (
    CLOSE_SECONDS,
    COMPRESSION,
    DELIVERY_MS,
    MAX_RECORD_BYTES,
    POLL_INTERVAL_MS,
    SESSION_MS,
    TRANSACTION_MS,
    offsets_of,
    spread,
)
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.errors import Fenced, OutcomeUnknown, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit

_FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_TXN_STATE,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}
_TIMED_OUT = {KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT_QUEUE}


@contextmanager
def _translated(doing: str, bootstrap: str, unknown: bool = False) -> Iterator[None]:
    """Client errors as ours; ``unknown``: a time-out leaves the outcome open."""
    try:
        yield
    except KafkaException as raised:
        error = raised.args[0]
        if error.code() in _FENCED:
            raise Fenced(f"{doing}: another owner took over ({error.name()})") from raised
        if unknown and error.code() in _TIMED_OUT:
            raise OutcomeUnknown(f"{doing}: no answer in time") from raised
        raise Unreachable(
            f"{doing}: Kafka at {bootstrap} did not do it: {error.name()}: {error.str()}; "
            "see `labkit status`"
        ) from raised


def _quiet(error: KafkaError) -> None:
    """librdkafka's own log lines are not for the user; what matters is raised."""


def _produce(
    producer: Producer,
    topic: str,
    key: bytes,
    value: bytes,
    partition: int,
    on_delivery: Callable[[KafkaError | None, Any], None] | None,
) -> None:
    """Queue one record. A full queue waits: its records go, or time out, while it is polled."""
    while True:
        try:
            producer.produce(topic, value, key, partition, on_delivery)
            return
        except BufferError:
            producer.poll(0.1)


class ConfluentBroker(KafkaPythonBroker):
    """Topics are still managed by kafka-python: that is not where speed matters."""

    def sender(self) -> ConfluentSender:  # type: ignore[override]
        """A new sender."""
        return ConfluentSender(self.bootstrap)

    def source(  # type: ignore[override]
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> ConfluentSource:
        """A member of ``group``, or a reader in none."""
        return ConfluentSource(self.bootstrap, topic, group, uncommitted)

    def log(  # type: ignore[override]
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> ConfluentLog:
        """A handler's log."""
        return ConfluentLog(self.bootstrap, commands, events, group, transactional_id, delivery)


class ConfluentSource:
    """A reader of one topic."""

    def __init__(
        self, bootstrap: str, topic: str, group: str | None, uncommitted: bool = False
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._positions: dict[int, int] = {}
        self._closed = False
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group or "labkit-reader",
                "isolation.level": f"read_{'un' * uncommitted}committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "partition.assignment.strategy": "cooperative-sticky",
                # Its offset tells where the next fetch starts, past markers and aborted records.
                "enable.partition.eof": True,
                "session.timeout.ms": SESSION_MS,
                "heartbeat.interval.ms": SESSION_MS // 3,
                "max.poll.interval.ms": POLL_INTERVAL_MS,
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 100,
                # By default 64 MB a partition may wait for who reads, and a batch has far less.
                "queued.max.messages.kbytes": 4 << 10,
                "allow.auto.create.topics": False,
                "error_cb": _quiet,
                "log_level": 0,
            }
        )
        with _translated(f"read {topic!r}", bootstrap):
            found = self._consumer.list_topics(topic, timeout=10).topics[topic]
            if found.error is not None or not found.partitions:
                raise Unreachable(f"topic {topic!r} does not exist at {bootstrap}; create it first")
            self._partitions = sorted(found.partitions)
            if group:
                self._consumer.subscribe(
                    [topic], on_assign=self._on_assign, on_revoke=self._on_revoke
                )
            else:
                self._consumer.assign([])

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        # Nothing flows before `start`, which assigns with an offset. Assigned and paused here, to
        # be sought and resumed there, a partition was seen to begin elsewhere after rebalances.
        consumer.incremental_assign([])
        self._assigned |= {tp.partition for tp in assigned}

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        partitions = {tp.partition for tp in revoked}
        self._assigned -= partitions
        self._revoked |= partitions
        started = [p for p in partitions if self._positions.pop(p, None) is not None]
        consumer.incremental_unassign([TopicPartition(self._topic, p) for p in started])

    def poll(self, limit: int, timeout: float) -> Batch:
        """At most ``limit`` records, one by one.

        ``consume`` would be a little faster, but librdkafka notes no application position for what
        it gives out. After a rebalance it goes on at that position, also in partitions that stay:
        one was read anew from its start.
        """
        batch = Batch()
        with _translated(f"read {self._topic!r}", self._bootstrap):
            messages = []
            size = 0
            message = self._consumer.poll(timeout)
            while message is not None:
                messages.append(message)
                size += len(message.value() or b"")
                more = len(messages) < limit and size < MAX_BATCH_BYTES
                message = self._consumer.poll(0) if more else None
            for message in messages:
                partition, offset = message.partition(), message.offset()
                if (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    if partition in self._positions:
                        batch.positions[partition] = offset
                elif partition in self._positions:
                    batch.positions[partition] = offset + 1
                    batch.records.append(
                        Record(partition, offset, message.key() or b"", message.value() or b"")
                    )
        for partition, position in list(batch.positions.items()):
            if position == self._positions.get(partition):
                del batch.positions[partition]
        self._positions.update(batch.positions)
        batch.assigned, self._assigned = frozenset(self._assigned), set()
        batch.revoked, self._revoked = frozenset(self._revoked), set()
        return batch

    def start(self, partition: int, offset: int | None = None) -> None:
        """Begin to read a partition."""
        tp = TopicPartition(self._topic, partition)
        with _translated(f"start {self._topic!r}:{partition}", self._bootstrap):
            if offset is None:
                # Under read_committed this waits for a predecessor's pending offset commit.
                committed = self._consumer.committed([tp], timeout=3 * TRANSACTION_MS / 1000)[0]
                if committed.error is not None:
                    raise KafkaException(committed.error)
                offset = max(committed.offset, 0)
            tp.offset = offset
            if partition in self._positions:
                self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
            self._consumer.incremental_assign([tp])
        self._positions[partition] = offset

    def stop(self, partition: int) -> None:
        """Yield nothing more of it."""
        if self._positions.pop(partition, None) is None:
            return
        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def ends(self) -> dict[int, int]:
        """The high watermarks: this query is not bound by the isolation level."""
        with _translated(f"ends of {self._topic!r}", self._bootstrap):
            return {
                p: self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, p), timeout=20, cached=False
                )[1]
                for p in self._partitions
            }

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        """Kafka's default partitioner."""
        return spread(keys, len(self._partitions))

    def close(self) -> None:
        """Leave the group."""
        if not self._closed:
            self._closed = True
            self._consumer.close()


class ConfluentLog(ConfluentSource):
    """The handler's log."""

    def __init__(
        self,
        bootstrap: str,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        settings = {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "message.timeout.ms": DELIVERY_MS,
            "linger.ms": 1,
            "compression.type": COMPRESSION,
            "batch.num.messages": 10_000,
            "message.max.bytes": MAX_RECORD_BYTES,
            "error_cb": _quiet,
            "log_level": 0,
        }
        if delivery == "exactly_once":
            settings |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_MS,
            }
        self._producer = Producer(settings)
        if delivery == "exactly_once":
            with _translated(f"take over {transactional_id!r}", bootstrap):
                self._producer.init_transactions(DELIVERY_MS / 1000)
        super().__init__(bootstrap, commands, group)
        self._events = events
        self._delivery = delivery

    def poll(self, limit: int, timeout: float) -> Batch:
        """The group's generation is noted with the batch: the first fence compares it."""
        batch = super().poll(limit, timeout)
        batch.fence = self._consumer.consumer_group_metadata()
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """See the twin in ``kafka_python``, also for why there is no abort."""
        positions = offsets_of(batch, commits, self._positions)
        offsets = [TopicPartition(self._topic, p, at) for p, at in positions.items()]
        with _translated(f"commit to {self._events!r}", self._bootstrap, unknown=True):
            match self._delivery:
                case "exactly_once":
                    producer, seconds = self._producer, TRANSACTION_MS / 1000
                    add = producer.send_offsets_to_transaction
                    producer.begin_transaction()
                    ends = self._produce(commits, lambda: add(offsets, batch.fence, seconds))
                    hit(Failpoint.HANDLER_OFFSETS)
                    producer.commit_transaction(seconds)
                case "at_least_once":
                    ends = self._produce(commits)
                    self._move(offsets)
                case "at_most_once":
                    self._move(offsets)
                    ends = self._produce(commits)
        return ends

    def _move(self, offsets: list[TopicPartition]) -> None:
        for moved in self._consumer.commit(offsets=offsets, asynchronous=False):
            if moved.error is not None:
                raise KafkaException(moved.error)
        hit(Failpoint.HANDLER_OFFSETS)

    def _produce(
        self, commits: Sequence[Record], beside: Callable[[], object] = lambda: None
    ) -> dict[int, int]:
        """``beside`` is done while they are on their way (kafka-python's wait for a flush)."""
        ends: dict[int, int] = {}
        failed: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failed.append(error)
            else:
                ends[message.partition()] = max(
                    ends.get(message.partition(), 0), message.offset() + 1
                )

        # An idempotent producer keeps the order, so the last of a partition tells its end. In a
        # transaction nobody need hear of the others: librdkafka commits none in which any failed.
        last = {r.partition: number for number, r in enumerate(commits)}
        all_tell = self._delivery != "exactly_once"
        for number, r in enumerate(commits):
            tell = on_delivery if all_tell or last[r.partition] == number else None
            _produce(self._producer, self._events, r.key, r.value, r.partition, tell)
        beside()
        if left := self._producer.flush(DELIVERY_MS / 1000) + len(failed) + len(last) - len(ends):
            raise Unreachable(
                f"{left} of {len(commits)} commits were not acknowledged within "
                f"{DELIVERY_MS / 1000:g} s by Kafka at {self._bootstrap}"
            )
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def commands(self) -> ConfluentSource:
        """A reader of the commands topic."""
        return ConfluentSource(self._bootstrap, self._topic, None)

    def events(self) -> ConfluentSource:
        """A reader of the events topic."""
        return ConfluentSource(self._bootstrap, self._events, None)

    def close(self) -> None:
        """Close both clients; what is still queued is given up, its transaction with it."""
        self._producer.purge()
        with suppress(KafkaException):  # a fenced producer does not even flush
            self._producer.flush(CLOSE_SECONDS)
        super().close()


class ConfluentDelivery:
    """The future of a send; it is fulfilled while its producer is served."""

    __slots__ = ("_bootstrap", "_producer", "error", "where")

    def __init__(self, producer: Producer, bootstrap: str) -> None:
        self._producer = producer
        self._bootstrap = bootstrap
        self.error: KafkaError | None = None
        self.where: tuple[int, int] | None = None

    def done(self, error: KafkaError | None, message: Any) -> None:
        """Called by the client."""
        self.error = error
        if error is None:
            self.where = message.partition(), message.offset()

    def result(self, timeout: float) -> tuple[int, int]:
        """Partition and offset."""
        deadline = time.monotonic() + timeout
        while self.where is None and self.error is None and time.monotonic() < deadline:
            self._producer.poll(0.05)
        if self.where is None:
            reason = self.error.str() if self.error else f"no answer within {timeout:g} s"
            raise Unreachable(f"send a command: Kafka at {self._bootstrap}: {reason}")
        return self.where


class ConfluentSender:
    """Sends commands."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._failed: KafkaError | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                # The same partition as kafka-python and the Java client.
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "compression.type": COMPRESSION,
                "batch.num.messages": 10_000,
                "message.max.bytes": MAX_RECORD_BYTES,
                "message.timeout.ms": 30_000,
                "allow.auto.create.topics": False,
                "error_cb": _quiet,
                "log_level": 0,
            }
        )

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> ConfluentDelivery:
        """Queue one record."""
        delivery = ConfluentDelivery(self._producer, self._bootstrap)
        to = -1 if partition is None else partition
        with _translated(f"send to {topic!r}", self._bootstrap):
            _produce(self._producer, topic, key, value, to, delivery.done)
        self._producer.poll(0)
        return delivery

    def flush(self, timeout: float) -> None:
        """Wait for all acknowledgements."""
        if left := self._producer.flush(timeout):
            raise Unreachable(
                f"flush: {left} records were not acknowledged by Kafka at {self._bootstrap} "
                f"within {timeout:g} s; see `labkit status`"
            )

    def close(self) -> None:
        """Bounded."""
        self._producer.flush(CLOSE_SECONDS)
