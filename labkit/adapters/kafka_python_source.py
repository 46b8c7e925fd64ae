"""Reading a topic through kafka-python."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import MemberState

from labkit.adapters.kafka import (
    CLOSE_SECONDS,
    POLL_INTERVAL_MS,
    SESSION_MS,
    SETTLE_MS,
    TRANSACTION_MS,
    spread,
)
from labkit.adapters.kafka_python_sender import translated
from labkit.errors import Pending, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Record


@contextmanager
def closed_unless_done(close: Callable[[], None]) -> Iterator[None]:
    """Close a client whose owner cannot be made: else its thread stays, with its connections."""
    with ExitStack() as undo:
        undo.callback(close)
        yield
        undo.pop_all()


class _Joined:
    """The future of a join that is over, which the client takes for one that is under way: it waits
    for the result, and has it at once."""

    is_done = False

    def __init__(self, future: Any) -> None:
        self._future = future

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)

    def __await__(self) -> Any:
        return self._future.__await__()


class KafkaPythonSource(ConsumerRebalanceListener):  # type: ignore[misc]
    """A reader of one topic, in a consumer group or in none.

    The rebalance callbacks run in the client's own thread, so they only record what changed.
    """

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
        self._group = group
        self._session_ms = session_ms
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._positions: dict[int, int] = {}
        self._watermarks: KafkaConsumer | None = None
        self._lock = threading.Lock()
        with translated(f"read {topic!r}", bootstrap):
            isolation = "read_uncommitted" if uncommitted else "read_committed"
            self._consumer = self._new_consumer(isolation, group)
            with closed_unless_done(self._consumer.close):
                found = self._consumer.partitions_for_topic(topic)
                if not found:
                    raise Unreachable(
                        f"topic {topic!r} does not exist at {bootstrap}; create it first"
                    )
                self._partitions = sorted(found)
                if group:
                    self._consumer.subscribe([topic], listener=self)

    def _new_consumer(self, isolation: str, group: str | None = None) -> KafkaConsumer:
        return KafkaConsumer(
            bootstrap_servers=self._bootstrap,
            bootstrap_timeout_ms=5_000,
            group_id=group,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            partition_assignment_strategy=(CooperativeStickyAssignor,),
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=self._session_ms // 3,
            max_poll_interval_ms=POLL_INTERVAL_MS,
            retry_backoff_ms=20,
            # A batch needs at most two fetches.
            fetch_max_bytes=4 << 20,
            max_partition_fetch_bytes=4 << 20,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        partitions = {tp.partition for tp in revoked}
        with self._lock:
            self._assigned -= partitions
            self._revoked |= partitions
            for partition in partitions:
                self._positions.pop(partition, None)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # An assigned partition yields no records before `start`.
        partitions = list(assigned)
        self._consumer.pause(*partitions)
        with self._lock:
            self._assigned |= {tp.partition for tp in partitions}

    def poll(self, limit: int, timeout: float) -> Batch:
        batch = Batch()
        if self._group is None and not self._positions:
            time.sleep(timeout)
            return batch
        with translated(f"read {self._topic!r}", self._bootstrap):
            self._rejoin_if_forgotten()
            self._keep_join()
            found = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=limit)
            batch.records = [
                Record(tp.partition, r.offset, r.key or b"", r.value or b"")
                for tp, records in found.items()
                for r in records
            ]
            if sum(len(record.value) for record in batch.records) > MAX_BATCH_BYTES:
                self._put_back(batch)
            # A copy, because a rebalance changes the dictionary in the client's own thread.
            for partition, before in list(self._positions.items()):
                position = self._consumer.position(TopicPartition(self._topic, partition))
                if position is not None and position != before:
                    batch.positions[partition] = position
        with self._lock:
            for partition in set(batch.positions) - set(self._positions):
                del batch.positions[partition]
            self._positions.update(batch.positions)
            batch.assigned, self._assigned = frozenset(self._assigned), set()
            batch.revoked, self._revoked = frozenset(self._revoked), set()
        batch.records = [r for r in batch.records if r.partition in batch.positions]
        return batch

    def _put_back(self, batch: Batch) -> None:
        """Seek back to the first record that exceeds ``MAX_BATCH_BYTES``.

        The limits of the client count compressed bytes, so they do not bound the batch.
        """
        size, back = 0, dict[int, int]()
        for record in batch.records:
            if size >= MAX_BATCH_BYTES:
                back.setdefault(record.partition, record.offset)
            size += len(record.value)
        batch.records = [r for r in batch.records if r.offset < back.get(r.partition, r.offset + 1)]
        for partition, offset in back.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    def _rejoin_if_forgotten(self) -> None:
        """Work around a bug of kafka-python 3.0.12.

        When a poll ends during a join that a metadata update started, the client forgets the join:
        it ignores the result, sends no more heartbeats, and polls in a busy loop.
        """
        joining = self._group and self._consumer.group_metadata().state == MemberState.REBALANCING
        if joining and not self._consumer._coordinator.need_rejoin():
            self._consumer._coordinator.request_rejoin()

    def _keep_join(self) -> None:
        """Work around another bug of kafka-python 3.0.12.

        A join that ends between two polls is thrown away, and the next poll begins another. So a
        member that polls now and then (scheduled mode) may never see the end of one: the group
        rebalances without end, and the member reads nothing meanwhile.
        """
        coordinator = self._consumer._coordinator
        if self._group and coordinator._join_task is not None and coordinator._join_task.is_done:
            coordinator._join_task = _Joined(coordinator._join_task)

    def start(self, partition: int, offset: int | None = None) -> int:
        tp = TopicPartition(self._topic, partition)
        with translated(f"start {self._topic!r}:{partition}", self._bootstrap):
            if offset is None:
                offset = self._settled(tp)
            self._positions[partition] = offset
            if self._group is None:
                self._assign()
            self._consumer.seek(tp, offset)
            self._consumer.resume(tp)
        return offset

    def _settled(self, tp: TopicPartition) -> int:
        """The committed offset; under read_committed a predecessor's pending one is asked for again
        and again by the client, so it gets a short time only."""
        try:
            return self._consumer.committed(tp, timeout_ms=SETTLE_MS) or 0
        except KafkaTimeoutError as error:
            raise Pending(f"the offsets of {tp.topic}:{tp.partition} are not settled") from error

    def committed(self) -> dict[int, int]:
        with translated(f"offsets of {self._group!r}", self._bootstrap):
            found = {p: self._committed(TopicPartition(self._topic, p)) for p in self._partitions}
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def _committed(self, tp: TopicPartition) -> int | None:
        """Under read_committed this waits for the pending offset commit of a predecessor."""
        offset: int | None = self._consumer.committed(tp, timeout_ms=3 * TRANSACTION_MS)
        return offset

    def stop(self, partition: int) -> None:
        self._positions.pop(partition, None)
        if self._group is None:
            self._assign()
        else:
            self._consumer.pause(TopicPartition(self._topic, partition))

    def _assign(self) -> None:
        """Assign the started partitions to a reader in no group, instead of pausing the others.

        kafka-python 3.0.12 sets the fetched records of a paused partition aside. After ``resume``
        it may never return them, if another partition was read to its end meanwhile.
        """
        self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(self._positions)])

    def ends(self) -> dict[int, int]:
        """The high watermarks, which the broker tells only to a ``read_uncommitted`` client."""
        with translated(f"ends of {self._topic!r}", self._bootstrap):
            if self._watermarks is None:
                self._watermarks = self._new_consumer("read_uncommitted")
            tps = [TopicPartition(self._topic, p) for p in self._partitions]
            found = self._watermarks.end_offsets(tps, timeout_ms=20_000)
        return {tp.partition: end for tp, end in found.items()}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        return spread(keys, len(self._partitions))

    def close(self) -> None:
        for consumer in filter(None, (self._consumer, self._watermarks)):
            try:
                consumer.close(timeout_ms=int(CLOSE_SECONDS * 1000))
            except KafkaError:  # no broker to leave the group at; the rest is left to do
                consumer._client.close()
