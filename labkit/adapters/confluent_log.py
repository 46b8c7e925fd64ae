"""The handler's log through confluent-kafka: commits and command offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from labkit.adapters.confluent_producer import enqueue, new_producer, translated
from labkit.adapters.confluent_source import ConfluentSource
from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import CLOSE_SECONDS, DELIVERY_MS, TRANSACTION_MS, offsets_of
from labkit.errors import Unreachable
from labkit.ports.broker import Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


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
        session_ms: int,
    ) -> None:
        settings: dict[str, Any] = {"message.timeout.ms": DELIVERY_MS}
        if delivery == "exactly_once":
            settings |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_MS,
            }
        self._producer = new_producer(bootstrap, settings)
        if delivery == "exactly_once":
            with translated(f"take over {transactional_id!r}", bootstrap):
                self._producer.init_transactions(DELIVERY_MS / 1000)
        super().__init__(bootstrap, commands, group, session_ms=session_ms)
        self._events = events
        self._delivery = delivery

    def poll(self, limit: int, timeout: float) -> Batch:
        """See the port; the batch carries the group's generation as its fence."""
        batch = super().poll(limit, timeout)
        batch.fence = self._consumer.consumer_group_metadata()
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """See the port and ``KafkaPythonLog.commit``, which explains why there is no abort."""
        positions = offsets_of(batch, commits, self._positions)
        offsets = [TopicPartition(self._topic, p, at) for p, at in positions.items()]
        with translated(f"commit to {self._events!r}", self._bootstrap, unknown=True):
            return commit_in_order(
                self._delivery,
                transaction=lambda: self._transaction(commits, offsets, batch.fence),
                produce=lambda: self._produce(commits),
                move_offsets=lambda: self._move(offsets),
            )

    def _transaction(
        self, commits: Sequence[Record], offsets: list[TopicPartition], fence: Any
    ) -> dict[int, int]:
        producer, seconds = self._producer, TRANSACTION_MS / 1000
        producer.begin_transaction()
        ends = self._produce(
            commits, lambda: producer.send_offsets_to_transaction(offsets, fence, seconds)
        )
        hit(Failpoint.HANDLER_OFFSETS)
        producer.commit_transaction(seconds)
        return ends

    def _move(self, offsets: list[TopicPartition]) -> None:
        for moved in self._consumer.commit(offsets=offsets, asynchronous=False):
            if moved.error is not None:
                raise KafkaException(moved.error)
        hit(Failpoint.HANDLER_OFFSETS)

    def _produce(
        self, commits: Sequence[Record], meanwhile: Callable[[], object] = lambda: None
    ) -> dict[int, int]:
        """Write commits; call ``meanwhile`` while they are in flight.

        kafka-python cannot do this: it sends the commits only on ``flush``.
        """
        ends: dict[int, int] = {}
        failed: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failed.append(error)
            else:
                ends[message.partition()] = max(
                    ends.get(message.partition(), 0), message.offset() + 1
                )

        # An idempotent producer keeps the order, so the last record of a partition gives its end.
        # A transaction needs no other callbacks: librdkafka commits none in which a record failed.
        last = {r.partition: number for number, r in enumerate(commits)}
        all_report = self._delivery != "exactly_once"
        for number, r in enumerate(commits):
            report = on_delivery if all_report or last[r.partition] == number else None
            enqueue(self._producer, self._events, r.key, r.value, r.partition, report)
        meanwhile()
        if left := self._producer.flush(DELIVERY_MS / 1000) + len(failed) + len(last) - len(ends):
            raise Unreachable(
                f"Kafka at {self._bootstrap} did not acknowledge {left} of {len(commits)} commits "
                f"within {DELIVERY_MS / 1000:g} s; see `labkit status`"
            )
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def commands(self) -> ConfluentSource:
        return ConfluentSource(self._bootstrap, self._topic, None)

    def events(self) -> ConfluentSource:
        return ConfluentSource(self._bootstrap, self._events, None)

    def close(self) -> None:
        """Close both clients; this drops queued records, and with them their transaction."""
        self._producer.purge()
        with suppress(KafkaException):  # a fenced producer cannot even flush
            self._producer.flush(CLOSE_SECONDS)
        super().close()
