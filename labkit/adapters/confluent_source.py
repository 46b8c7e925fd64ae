"""Reading a topic through confluent-kafka."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from labkit.adapters.confluent_producer import client_settings, translated
from labkit.adapters.kafka import POLL_INTERVAL_MS, SESSION_MS, SETTLE_MS, spread
from labkit.errors import Pending, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Record


class ConfluentSource:
    """A reader of one topic, in a consumer group or in none."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str | None,
        uncommitted: bool = False,
        session_ms: int = SESSION_MS,
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._positions: dict[int, int] = {}
        self._closed = False
        self._admin: AdminClient | None = None
        self._consumer = Consumer(
            {
                **client_settings(bootstrap),
                "group.id": group or "labkit-reader",
                "isolation.level": f"read_{'un' * uncommitted}committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "partition.assignment.strategy": "cooperative-sticky",
                # The EOF event carries the next fetch offset, after markers and aborted records.
                "enable.partition.eof": True,
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": session_ms // 3,
                "max.poll.interval.ms": POLL_INTERVAL_MS,
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 100,
                # The default prefetches 64 MB a partition; a batch is much smaller.
                "queued.max.messages.kbytes": 4 << 10,
                "allow.auto.create.topics": False,
            }
        )
        with translated(f"read {topic!r}", bootstrap):
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
        # `start` assigns the partitions with an offset. The alternative (assign and pause here,
        # seek and resume in `start`) sometimes began at a wrong offset after rebalances.
        consumer.incremental_assign([])
        self._assigned |= {tp.partition for tp in assigned}

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        partitions = {tp.partition for tp in revoked}
        self._assigned -= partitions
        self._revoked |= partitions
        started = [p for p in partitions if self._positions.pop(p, None) is not None]
        consumer.incremental_unassign([TopicPartition(self._topic, p) for p in started])

    def poll(self, limit: int, timeout: float) -> Batch:
        """See the port.

        ``consume`` would be slightly faster, but librdkafka does not record the application
        position of its records. After a rebalance librdkafka resumes at that position even in
        partitions that stay, and one partition was read from its start again.
        """
        batch = Batch()
        with translated(f"read {self._topic!r}", self._bootstrap):
            for message in self._messages(limit, timeout):
                self._take(message, batch)
        batch.positions = {
            partition: position
            for partition, position in batch.positions.items()
            if position != self._positions[partition]
        }
        self._positions.update(batch.positions)
        batch.assigned, self._assigned = frozenset(self._assigned), set()
        batch.revoked, self._revoked = frozenset(self._revoked), set()
        return batch

    def _messages(self, limit: int, timeout: float) -> list[Any]:
        messages = []
        size = 0
        message = self._consumer.poll(timeout)
        while message is not None:
            messages.append(message)
            size += len(message.value() or b"")
            more = len(messages) < limit and size < MAX_BATCH_BYTES
            message = self._consumer.poll(0) if more else None
        return messages

    def _take(self, message: Any, batch: Batch) -> None:
        partition, offset, error = message.partition(), message.offset(), message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        if partition not in self._positions:  # revoked during this poll
            return
        if error is not None:
            batch.positions[partition] = offset
        else:
            batch.positions[partition] = offset + 1
            batch.records.append(
                Record(partition, offset, message.key() or b"", message.value() or b"")
            )

    def start(self, partition: int, offset: int | None = None) -> int:
        tp = TopicPartition(self._topic, partition)
        with translated(f"start {self._topic!r}:{partition}", self._bootstrap):
            if offset is None:
                offset = self._settled(tp)
            tp.offset = offset
            if partition in self._positions:
                self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
            self._consumer.incremental_assign([tp])
        self._positions[partition] = offset
        return offset

    def _settled(self, tp: TopicPartition) -> int:
        """The committed offset; under read_committed a predecessor's pending one is asked for again
        and again by the client, so it gets a short time only."""
        try:
            (committed,) = self._consumer.committed([tp], timeout=SETTLE_MS / 1000)
            if committed.error is not None:
                raise KafkaException(committed.error)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._TIMED_OUT:
                raise Pending(
                    f"the offsets of {tp.topic}:{tp.partition} are not settled"
                ) from error
            raise
        return max(int(committed.offset), 0)

    def stop(self, partition: int) -> None:
        if self._positions.pop(partition, None) is None:
            return
        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def ends(self) -> dict[int, int]:
        """The high watermarks. Of a ``read_committed`` consumer the broker tells only the last
        stable offsets, which are too low while a transaction is open, or its markers on their way.
        """
        with translated(f"ends of {self._topic!r}", self._bootstrap):
            if self._admin is None:
                self._admin = AdminClient(client_settings(self._bootstrap))
            asked = self._admin.list_offsets(
                {TopicPartition(self._topic, p): OffsetSpec.latest() for p in self._partitions},
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=20,
            )
            return {tp.partition: found.result().offset for tp, found in asked.items()}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        return spread(keys, len(self._partitions))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._consumer.close()
