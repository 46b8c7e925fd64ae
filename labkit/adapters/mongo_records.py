"""Writing to the log on MongoDB: offsets drawn and records written as one, and the sender."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import stamina
from bson import Binary
from msgspec import Struct
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database

from labkit.adapters.kafka import partition_of
from labkit.adapters.mongo import transaction, translated
from labkit.errors import Conflict, LabkitError, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Record
from labkit.ports.store import Document

#: A dead worker's transaction is ended by the server after 8 s; whoever meets it tries for longer.
PATIENCE_SECONDS = 20.0
#: Records in one transaction of a sender, unless they are large (``MAX_BATCH_BYTES``).
SENDER_BATCH = 2_000


class _Fact(Struct):
    """What the unique indexes need of a commit."""

    stream: str
    partition: int
    offset: int
    outcome: str
    first: int
    last: int


_facts = msgspec.json.Decoder(_Fact)


def unique(value: bytes, *, once: bool) -> Document:
    """What of a commit there may be only one of; of bytes that are no commit nothing.

    ``once``: a command has one final commit. Where its offset is moved by itself it may be
    delivered again, and then it has another, which says that it is a repetition.
    """
    try:
        fact = _facts.decode(value)
    except msgspec.MsgspecError:
        return {}
    found: Document = {}
    if fact.last >= fact.first:
        # A zombie decides on a version that the stream once had, so ``first`` tells both apart.
        found |= {"stream": fact.stream, "version": fact.first}
    if once and fact.outcome not in ("scheduled", "parked"):
        found["command"] = f"{fact.partition}:{fact.offset}"
    return found


def append(
    db: Database[Document],
    session: ClientSession,
    topic: str,
    records: Sequence[Record],
    fields: Callable[[bytes], Document] = lambda _: {},
) -> tuple[list[int], dict[int, int]]:
    """Draw offsets and write; the offsets in the order of ``records``, and the partitions' ends.

    ``fields`` makes what is stored beside a value, for the indexes.
    """
    counts = Counter(record.partition for record in records)
    following: dict[int, int] = {}
    for partition in sorted(counts):
        found = db["log.ends"].find_one_and_update(
            {"_id": f"{topic}|{partition}"}, {"$inc": {"next": counts[partition]}}, session=session
        )
        if found is None:
            raise Unreachable(f"topic {topic!r} has no partition {partition}; create it first")
        following[partition] = found["next"]
    offsets: list[int] = []
    documents: list[Document] = []
    for record in records:
        offset = following[record.partition]
        following[record.partition] = offset + 1
        offsets.append(offset)
        documents.append(
            {
                "_id": {"p": record.partition, "o": offset},
                "key": Binary(record.key),
                "value": Binary(record.value),
                **fields(record.value),
            }
        )
    if documents:
        db[f"log.{topic}"].insert_many(documents, ordered=False, session=session)
    return offsets, following


class MongoDelivery:
    """The future of a send."""

    def __init__(self, topic: str, record: Record) -> None:
        self.topic = topic
        self.record = record
        self._there = threading.Event()
        self._failed: LabkitError | None = None
        self._offset = -1

    def done(self, offset: int) -> None:
        """It is in the log."""
        self._offset = offset
        self._there.set()

    def failed(self, error: LabkitError) -> None:
        """It is not, or nobody knows."""
        self._failed = error
        self._there.set()

    def result(self, timeout: float) -> tuple[int, int]:
        """Partition and offset."""
        if not self._there.wait(timeout):
            raise Unreachable(f"send to {self.topic!r}: no answer within {timeout:g} s")
        if self._failed is not None:
            raise Unreachable(str(self._failed)) from self._failed
        return self.record.partition, self._offset


class MongoSender:
    """Sends commands: what has gathered goes out as one transaction, from a thread of its own."""

    def __init__(self, client: MongoClient[Document], db: Database[Document]) -> None:
        self._client, self._db = client, db
        self._partitions: dict[str, int] = {}
        self._waiting: list[MongoDelivery] = []
        self._busy = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> MongoDelivery:
        """Queue one record."""
        if topic not in self._partitions:
            self._partitions[topic] = partitions_of(self._db, topic)
        if partition is None:
            partition = partition_of(key, self._partitions[topic])
        delivery = MongoDelivery(topic, Record(partition, 0, key, value))
        with self._changed:
            self._waiting.append(delivery)
            self._changed.notify_all()
        return delivery

    def flush(self, timeout: float) -> None:
        """Wait for all acknowledgements."""
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._waiting or self._busy), timeout):
                raise Unreachable(f"flush: not everything was acknowledged within {timeout:g} s")

    def close(self) -> None:
        """Send what is queued, bounded in time."""
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
                self._changed.notify_all()

    def _take(self) -> list[MongoDelivery]:
        count = size = 0
        for delivery in self._waiting[:SENDER_BATCH]:
            count, size = count + 1, size + len(delivery.record.value)
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


def attempts() -> Iterable[Any]:
    """Of two transactions that write one document, the later one is undone and tried again."""
    return stamina.retry_context(
        on=Conflict, attempts=None, timeout=PATIENCE_SECONDS, wait_initial=0.005, wait_max=0.5
    )


def partitions_of(db: Database[Document], topic: str) -> int:
    """Of a topic; raises ``Unreachable`` where there is none."""
    with translated(f"read {topic!r}"):
        found = db["log.topics"].find_one({"_id": topic})
    if found is None:
        raise Unreachable(f"topic {topic!r} does not exist; create it first")
    return int(found["partitions"])
