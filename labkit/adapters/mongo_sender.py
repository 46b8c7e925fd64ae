"""Sending commands to the log on MongoDB."""

from __future__ import annotations

import threading

from pymongo import MongoClient
from pymongo.database import Database

from labkit.adapters.kafka import partition_of
from labkit.adapters.mongo_client import transaction, translated
from labkit.adapters.mongo_records import PATIENCE_SECONDS, append, attempts, partitions_of
from labkit.errors import LabkitError, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Record
from labkit.ports.store import Document

#: The most records in one transaction; ``MAX_BATCH_BYTES`` also limits it.
SENDER_BATCH = 2_000
#: As of a Kafka client: what waits to be sent, in bytes, and how long a send waits for room.
MOST_WAITING_BYTES = 32 << 20
ROOM_SECONDS = 10.0


class MongoDelivery:
    """The future of a send."""

    def __init__(self, topic: str, record: Record) -> None:
        self.topic = topic
        self.record = record
        self._there = threading.Event()
        self._failed: LabkitError | None = None
        self._offset = -1

    def done(self, offset: int) -> None:
        self._offset = offset
        self._there.set()

    def failed(self, error: LabkitError) -> None:
        """The record is not in the log, or the outcome is unknown."""
        self._failed = error
        self._there.set()

    def settled(self) -> bool:
        return self._there.is_set()

    def result(self, timeout: float) -> tuple[int, int]:
        if not self._there.wait(timeout):
            raise Unreachable(
                f"send to {self.topic!r}: MongoDB did not answer within {timeout:g} s; see "
                "`labkit status`"
            )
        if self._failed is not None:
            raise Unreachable(str(self._failed)) from self._failed
        return self.record.partition, self._offset


class MongoSender:
    """Sends commands; a background thread writes the queued ones in one transaction."""

    def __init__(self, client: MongoClient[Document], db: Database[Document]) -> None:
        self._client, self._db = client, db
        self._partitions: dict[str, int] = {}
        self._waiting: list[MongoDelivery] = []
        self._bytes = 0
        self._busy = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> MongoDelivery:
        if topic not in self._partitions:
            self._partitions[topic] = partitions_of(self._db, topic)
        if partition is None:
            partition = partition_of(key, self._partitions[topic])
        delivery = MongoDelivery(topic, Record(partition, 0, key, value))
        with self._changed:
            if not self._changed.wait_for(lambda: self._bytes < MOST_WAITING_BYTES, ROOM_SECONDS):
                raise Unreachable(
                    f"send to {topic!r}: {self._bytes:,} bytes wait for MongoDB, and no room came "
                    f"within {ROOM_SECONDS:g} s; see `labkit status`"
                )
            self._waiting.append(delivery)
            self._bytes += _size(delivery)
            self._changed.notify_all()
        return delivery

    def flush(self, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._waiting or self._busy), timeout):
                raise Unreachable(
                    f"flush: MongoDB did not acknowledge all records within {timeout:g} s; "
                    "see `labkit status`"
                )

    def close(self) -> None:
        """Send the queued records, within ``PATIENCE_SECONDS``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(PATIENCE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                batch = self._take()
                self._busy = True
            self._write(batch)
            with self._changed:
                self._busy = False
                self._bytes -= sum(map(_size, batch))
                self._changed.notify_all()

    def _take(self) -> list[MongoDelivery]:
        count = size = 0
        for delivery in self._waiting[:SENDER_BATCH]:
            count, size = count + 1, size + _size(delivery)
            if size >= MAX_BATCH_BYTES:
                break
        batch = self._waiting[:count]
        del self._waiting[:count]
        return batch

    def _write(self, batch: list[MongoDelivery]) -> None:
        topics: dict[str, list[MongoDelivery]] = {}
        for delivery in batch:
            topics.setdefault(delivery.topic, []).append(delivery)
        for topic, deliveries in topics.items():
            records = [delivery.record for delivery in deliveries]
            try:
                for attempt in attempts():
                    doing = f"send to {topic!r}"
                    with attempt, translated(doing), transaction(self._client) as session:
                        offsets, _ = append(self._db, session, topic, records)
            except LabkitError as error:
                for delivery in deliveries:
                    delivery.failed(error)
            else:
                for delivery, offset in zip(deliveries, offsets, strict=True):
                    delivery.done(offset)


def _size(delivery: MongoDelivery) -> int:
    return len(delivery.record.key) + len(delivery.record.value)
