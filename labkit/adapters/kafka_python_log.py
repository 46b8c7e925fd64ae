"""The handler's log through kafka-python: commits and command offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import (
    COMPRESSION,
    DELIVERY_MS,
    MAX_RECORD_BYTES,
    TRANSACTION_MS,
    bounded,
    offsets_of,
)
from labkit.adapters.kafka_python_sender import QuietProducer, translated
from labkit.adapters.kafka_python_source import KafkaPythonSource, closed_unless_done
from labkit.errors import Fenced
from labkit.ports.broker import Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


class KafkaPythonLog(KafkaPythonSource):
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
        once = delivery == "exactly_once"
        # The producer first: taking over the id aborts the open transaction of a dead owner.
        with translated(f"take over {transactional_id!r}", bootstrap):
            self._producer = QuietProducer(
                bootstrap_servers=bootstrap,
                bootstrap_timeout_ms=5_000,
                transactional_id=transactional_id if once else None,
                transaction_timeout_ms=TRANSACTION_MS,
                delivery_timeout_ms=DELIVERY_MS,
                request_timeout_ms=DELIVERY_MS - 1_000,
                max_block_ms=DELIVERY_MS,
                # The default, 100 ms, allows only 8 transactions a second (platform notes).
                retry_backoff_ms=2,
                # `flush` ends this wait, so the commits of a batch need only a few requests.
                linger_ms=1_000,
                compression_type=COMPRESSION,
                batch_size=2 << 20,
                max_request_size=MAX_RECORD_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        with closed_unless_done(self._producer.close):
            if once:
                with translated(f"take over {transactional_id!r}", bootstrap):
                    self._producer.init_transactions()
            super().__init__(bootstrap, commands, group, session_ms=session_ms)
        self._events = events
        self._delivery = delivery

    def poll(self, limit: int, timeout: float) -> Batch:
        """See the port; the batch carries the group's generation as its fence."""
        batch = super().poll(limit, timeout)
        batch.fence = self._consumer.group_metadata()
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """See the port.

        There is no abort: after an error the caller closes the log, and the next owner of the
        transactional id aborts the transaction.
        """
        positions = offsets_of(batch, commits, self._positions)
        offsets = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(position, "", -1)
            for partition, position in positions.items()
        }
        with translated(f"commit to {self._events!r}", self._bootstrap):
            fence = self._fence(batch)
            return commit_in_order(
                self._delivery,
                transaction=lambda: bounded(self._transaction, commits, offsets, fence),
                produce=lambda: self._produce(commits),
                move_offsets=lambda: self._move(offsets),
            )

    def _transaction(
        self, commits: Sequence[Record], offsets: dict[TopicPartition, Any], fence: Any
    ) -> dict[int, int]:
        self._producer.begin_transaction()
        ends = self._produce(commits)
        self._producer.send_offsets_to_transaction(offsets, fence)
        hit(Failpoint.HANDLER_OFFSETS)
        self._producer.commit_transaction()
        return ends

    def _move(self, offsets: dict[TopicPartition, Any]) -> None:
        self._consumer.commit(offsets, timeout_ms=TRANSACTION_MS)
        hit(Failpoint.HANDLER_OFFSETS)

    def _fence(self, batch: Batch) -> Any:
        """The group's generation; outside a group there is none, and Kafka would not check it."""
        if batch.fence.generation_id < 0 or not batch.fence.member_id:
            raise Fenced(f"commit to {self._events!r}: this worker is no longer in its group")
        return batch.fence

    def _produce(self, commits: Sequence[Record]) -> dict[int, int]:
        """Write commits; check every future: a timeout fails one batch only (platform notes)."""
        send, events = self._producer.send, self._events
        futures = [send(events, r.value, r.key, partition=r.partition) for r in commits]
        self._producer.flush(DELIVERY_MS / 1000)
        ends: dict[int, int] = {}
        for future in futures:
            # `get` raises for a pending or failed send.
            sent = future.value if future.succeeded() else future.get(timeout=0)
            ends[sent.partition] = sent.offset + 1
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def commands(self) -> KafkaPythonSource:
        return KafkaPythonSource(self._bootstrap, self._topic, None)

    def events(self) -> KafkaPythonSource:
        return KafkaPythonSource(self._bootstrap, self._events, None)

    def close(self) -> None:
        self._producer.close()
        super().close()
