"""Kafka through kafka-python: the default everywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.admin import NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState, OffsetAndMetadata

from labkit.adapters.kafka import (
    CLOSE_SECONDS,
    COMPRESSION,
    DELIVERY_MS,
    MAX_RECORD_BYTES,
    POLL_INTERVAL_MS,
    SESSION_MS,
    TOPIC_CONFIG,
    TRANSACTION_MS,
    bounded,
    offsets_of,
    once_there,
    spread,
)
from labkit.adapters.kafka_python_sender import KafkaPythonSender, close_producer, translated
from labkit.errors import Fenced, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


class KafkaPythonBroker:
    """The way to a Kafka at ``bootstrap`` (host:port); ``replication`` -1 is the broker's own."""

    def __init__(self, bootstrap: str, replication: int = -1) -> None:
        self.bootstrap = bootstrap
        self._replication = replication
        self._admin_client: KafkaAdminClient | None = None

    def create(self, topics: Mapping[str, int]) -> None:
        """Create the topics that are not there yet, and wait until they have leaders."""
        present = set(self.topics())
        new = [
            NewTopic(name, partitions, self._replication, topic_configs=TOPIC_CONFIG)
            for name, partitions in topics.items()
            if name not in present
        ]
        with translated("create topics", self.bootstrap):
            if new:
                with suppress(errors.TopicAlreadyExistsError):  # somebody else was faster
                    self._admin().create_topics(new, timeout_ms=20_000)
            self._admin().wait_for_topics(list(topics), timeout_ms=20_000)

    def drop(self, topics: Iterable[str]) -> None:
        """Delete topics."""
        present = sorted(set(topics) & set(self.topics()))
        if present:
            with translated("delete topics", self.bootstrap):
                self._admin().delete_topics(present, timeout_ms=20_000)

    def topics(self) -> list[str]:
        """The names of all topics that are not internal."""
        with translated("list topics", self.bootstrap):
            return sorted(t for t in self._admin().list_topics() if not t.startswith("__"))

    def sender(self) -> KafkaPythonSender:
        """A new sender."""
        return KafkaPythonSender(self.bootstrap)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> KafkaPythonSource:
        """A member of ``group``, or a reader in none."""
        return KafkaPythonSource(self.bootstrap, topic, group, uncommitted)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> KafkaPythonLog:
        """A handler's log."""
        return KafkaPythonLog(self.bootstrap, commands, events, group, transactional_id, delivery)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        """The offsets that a group has committed. An admin client does not wait; a consumer does,
        and one that never polls is no member of its group."""
        if settled:
            with closing(KafkaPythonSource(self.bootstrap, topic, group)) as source:
                return source.committed()
        with translated(f"offsets of {group!r}", self.bootstrap):
            # The first group ever makes the broker create the topic of the groups' offsets.
            ask = self._admin().list_group_offsets
            found = once_there(lambda: ask({group: None})[group])
        return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}

    def version(self) -> str:
        """What the broker's protocol versions tell: major.minor."""
        with translated("ask for the version", self.bootstrap):
            node = self._admin().describe_cluster()["brokers"][0]["broker_id"]
            version = self._admin().get_broker_version_data(node).broker_version
            return ".".join(str(part) for part in version)

    def close(self) -> None:
        """Close the admin client."""
        if self._admin_client:
            self._admin_client.close()
            self._admin_client = None

    def _admin(self) -> KafkaAdminClient:
        if self._admin_client is None:
            self._admin_client = KafkaAdminClient(
                bootstrap_servers=self.bootstrap,
                bootstrap_timeout_ms=5_000,
                request_timeout_ms=20_000,
            )
        return self._admin_client


class KafkaPythonSource(ConsumerRebalanceListener):  # type: ignore[misc]
    """A reader of one topic. As a listener it notes changes of ownership; all work on them happens
    outside the callback."""

    def __init__(
        self, bootstrap: str, topic: str, group: str | None, uncommitted: bool = False
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._positions: dict[int, int] = {}
        self._watermarks: KafkaConsumer | None = None
        self._lock = threading.Lock()
        with translated(f"read {topic!r}", bootstrap):
            isolation = "read_uncommitted" if uncommitted else "read_committed"
            self._consumer = self._new_consumer(isolation, group)
            found = self._consumer.partitions_for_topic(topic)
            if not found:
                raise Unreachable(f"topic {topic!r} does not exist at {bootstrap}; create it first")
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
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 3,
            max_poll_interval_ms=POLL_INTERVAL_MS,
            retry_backoff_ms=20,
            # A batch is two fetches at most.
            fetch_max_bytes=4 << 20,
            max_partition_fetch_bytes=4 << 20,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Called in a rebalance, from the client's own thread."""
        partitions = {tp.partition for tp in revoked}
        with self._lock:
            self._assigned -= partitions
            self._revoked |= partitions
            for partition in partitions:
                self._positions.pop(partition, None)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Called in a rebalance: nothing flows before ``start``."""
        partitions = list(assigned)
        self._consumer.pause(*partitions)
        with self._lock:
            self._assigned |= {tp.partition for tp in partitions}

    def poll(self, limit: int, timeout: float) -> Batch:
        """At most ``limit`` records."""
        batch = Batch()
        if self._group is None and not self._positions:
            time.sleep(timeout)
            return batch
        with translated(f"read {self._topic!r}", self._bootstrap):
            self._remember_to_join()
            found = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=limit)
            batch.records = [
                Record(tp.partition, r.offset, r.key or b"", r.value or b"")
                for tp, records in found.items()
                for r in records
            ]
            if sum(len(record.value) for record in batch.records) > MAX_BATCH_BYTES:
                self._put_back(batch)
            # Rebalances are told from the client's own thread.
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
        """What is too much for one batch is fetched again: a limit of the client counts compressed
        bytes, and does not know what comes of them."""
        size, back = 0, dict[int, int]()
        for record in batch.records:
            if size >= MAX_BATCH_BYTES:
                back.setdefault(record.partition, record.offset)
            size += len(record.value)
        batch.records = [r for r in batch.records if r.offset < back.get(r.partition, r.offset + 1)]
        for partition, offset in back.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    def _remember_to_join(self) -> None:
        """kafka-python 3.0.12 forgets a join that new metadata made it begin, if a poll ends before
        it does: nobody takes its result, no heartbeat is sent any more, and polls go round and
        round without a pause."""
        joining = self._group and self._consumer.group_metadata().state == MemberState.REBALANCING
        if joining and not self._consumer._coordinator.need_rejoin():
            self._consumer._coordinator.request_rejoin()

    def start(self, partition: int, offset: int | None = None) -> None:
        """Begin to read a partition."""
        tp = TopicPartition(self._topic, partition)
        with translated(f"start {self._topic!r}:{partition}", self._bootstrap):
            if offset is None:
                offset = self._committed(tp) or 0
            self._positions[partition] = offset
            if self._group is None:
                self._assign()
            self._consumer.seek(tp, offset)
            self._consumer.resume(tp)

    def committed(self) -> dict[int, int]:
        """The offsets that the group has committed."""
        with translated(f"offsets of {self._group!r}", self._bootstrap):
            found = {p: self._committed(TopicPartition(self._topic, p)) for p in self._partitions}
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def _committed(self, tp: TopicPartition) -> int | None:
        """Under read_committed this waits for a predecessor's pending offset commit."""
        offset: int | None = self._consumer.committed(tp, timeout_ms=3 * TRANSACTION_MS)
        return offset

    def stop(self, partition: int) -> None:
        """Yield nothing more of it."""
        self._positions.pop(partition, None)
        if self._group is None:
            self._assign()
        else:
            self._consumer.pause(TopicPartition(self._topic, partition))

    def _assign(self) -> None:
        """A reader in no group is assigned what it reads, and nothing is ever paused: kafka-python
        3.0.12 puts the fetched records of a paused partition aside, and after ``resume`` may never
        take them up again (where those of another partition were read to their end meanwhile)."""
        self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(self._positions)])

    def ends(self) -> dict[int, int]:
        """The high watermarks: only a ``read_uncommitted`` client is told those."""
        with translated(f"ends of {self._topic!r}", self._bootstrap):
            if self._watermarks is None:
                self._watermarks = self._new_consumer("read_uncommitted")
            tps = [TopicPartition(self._topic, p) for p in self._partitions]
            found = self._watermarks.end_offsets(tps, timeout_ms=20_000)
        return {tp.partition: end for tp, end in found.items()}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        """Kafka's default partitioner."""
        return spread(keys, len(self._partitions))

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(timeout_ms=int(CLOSE_SECONDS * 1000))
        if self._watermarks:
            self._watermarks.close(timeout_ms=int(CLOSE_SECONDS * 1000))


class KafkaPythonLog(KafkaPythonSource):
    """The handler's log: commits and command offsets, as one or one after the other."""

    def __init__(
        self,
        bootstrap: str,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        once = delivery == "exactly_once"
        # The producer first: taking the id over ends what a dead owner left open.
        with translated(f"take over {transactional_id!r}", bootstrap):
            self._producer = KafkaProducer(
                bootstrap_servers=bootstrap,
                bootstrap_timeout_ms=5_000,
                transactional_id=transactional_id if once else None,
                transaction_timeout_ms=TRANSACTION_MS,
                delivery_timeout_ms=DELIVERY_MS,
                request_timeout_ms=DELIVERY_MS - 1_000,
                max_block_ms=DELIVERY_MS,
                # With the default of 100 ms there are 8 transactions a second (platform notes).
                retry_backoff_ms=2,
                # The commits of a batch go out in few requests: `flush` ends the wait.
                linger_ms=1_000,
                compression_type=COMPRESSION,
                batch_size=2 << 20,
                max_request_size=MAX_RECORD_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
            if once:
                self._producer.init_transactions()
        super().__init__(bootstrap, commands, group)
        self._events = events
        self._delivery = delivery

    def poll(self, limit: int, timeout: float) -> Batch:
        """The group's generation is noted with the batch: the first fence compares it."""
        batch = super().poll(limit, timeout)
        batch.fence = self._consumer.group_metadata()
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """The three delivery levels are the order of the steps in here.

        There is no abort. Whoever meets an error closes the log, and the next owner of the
        transactional id ends the transaction.
        """
        positions = offsets_of(batch, commits, self._positions)
        offsets = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(position, "", -1)
            for partition, position in positions.items()
        }
        with translated(f"commit to {self._events!r}", self._bootstrap):
            fence = self._fence(batch)
            match self._delivery:
                case "exactly_once":
                    ends = bounded(self._transaction, commits, offsets, fence)
                case "at_least_once":
                    ends = self._produce(commits)
                    self._consumer.commit(offsets, timeout_ms=TRANSACTION_MS)
                    hit(Failpoint.HANDLER_OFFSETS)
                case "at_most_once":
                    self._consumer.commit(offsets, timeout_ms=TRANSACTION_MS)
                    hit(Failpoint.HANDLER_OFFSETS)
                    ends = self._produce(commits)
        return ends

    def _transaction(
        self, commits: Sequence[Record], offsets: dict[TopicPartition, Any], fence: Any
    ) -> dict[int, int]:
        self._producer.begin_transaction()
        ends = self._produce(commits)
        self._producer.send_offsets_to_transaction(offsets, fence)
        hit(Failpoint.HANDLER_OFFSETS)
        self._producer.commit_transaction()
        return ends

    def _fence(self, batch: Batch) -> Any:
        """Outside of its group a client knows no generation, and Kafka would check none."""
        if batch.fence.generation_id < 0 or not batch.fence.member_id:
            raise Fenced(f"commit to {self._events!r}: this worker fell out of its group")
        return batch.fence

    def _produce(self, commits: Sequence[Record]) -> dict[int, int]:
        """Every future is checked: a batch that timed out fails only its own (platform notes)."""
        send, events = self._producer.send, self._events
        futures = [send(events, r.value, r.key, partition=r.partition) for r in commits]
        self._producer.flush(DELIVERY_MS / 1000)
        ends: dict[int, int] = {}
        for future in futures:
            # What is not done yet, or has failed, raises.
            sent = future.value if future.succeeded() else future.get(timeout=0)
            ends[sent.partition] = sent.offset + 1
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def commands(self) -> KafkaPythonSource:
        """A reader of the commands topic."""
        return KafkaPythonSource(self._bootstrap, self._topic, None)

    def events(self) -> KafkaPythonSource:
        """A reader of the events topic."""
        return KafkaPythonSource(self._bootstrap, self._events, None)

    def close(self) -> None:
        """Close both clients."""
        close_producer(self._producer)
        super().close()
