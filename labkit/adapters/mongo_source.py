"""Reading a topic of the log on MongoDB."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from bson import MaxKey
from pymongo import MongoClient
from pymongo.database import Database

from labkit.adapters.kafka import spread
from labkit.adapters.mongo_client import translated
from labkit.adapters.mongo_group import Membership
from labkit.adapters.mongo_records import as_record, partitions_of
from labkit.errors import LabkitError
from labkit.ports.broker import MAX_BATCH_BYTES, Batch
from labkit.ports.store import Document

#: How often a reader looks for new records.
POLL_SECONDS = 0.005


class MongoSource:
    """A reader of one topic, in a consumer group or in none."""

    def __init__(
        self,
        client: MongoClient[Document],
        db: Database[Document],
        topic: str,
        group: str | None,
        slot: str = "",
    ) -> None:
        self._client, self._db, self._topic = client, db, topic
        self._count = partitions_of(db, topic)
        self._positions: dict[int, int] = {}
        self._member = uuid.uuid4().hex
        self._group = f"{topic}|{group}" if group else None
        self._membership = (
            Membership(db, self._member, self._group, self._count, slot) if self._group else None
        )

    def poll(self, limit: int, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        batch = Batch()
        with translated(f"read {self._topic!r}"):
            while True:
                if self._membership:
                    self._membership.renew(batch)
                    for partition in batch.revoked:
                        self._positions.pop(partition, None)
                self._read(limit, batch)
                left = deadline - time.monotonic()
                if batch.records or batch.assigned or batch.revoked or left <= 0:
                    break
                time.sleep(min(left, POLL_SECONDS))
        batch.fence = dict(self._membership.owned) if self._membership else {}
        return batch

    def _read(self, limit: int, batch: Batch) -> None:
        ends = self._ends(self._positions) if self._positions else {}
        size = 0
        for partition, position in list(self._positions.items()):
            room = limit - len(batch.records)
            if room <= 0 or size >= MAX_BATCH_BYTES:
                return
            if position >= ends.get(partition, 0):
                continue
            # Move it to the end of the queue, so that a busy partition does not starve the others.
            self._positions[partition] = self._positions.pop(partition)
            with self._db[f"log.{self._topic}"].find(
                {"_id": {"$gte": _place(partition, position), "$lt": _place(partition, MaxKey())}},
                sort=[("_id", 1)],
                limit=room,
            ) as found:
                for record in map(as_record, found):
                    batch.records.append(record)
                    self._positions[partition] = batch.positions[partition] = record.offset + 1
                    size += len(record.value)
                    if size >= MAX_BATCH_BYTES:
                        break

    def start(self, partition: int, offset: int | None = None) -> int:
        if offset is None:
            with translated(f"start {self._topic!r}:{partition}"):
                found = self._db["log.groups"].find_one({"_id": f"{self._group}|{partition}"})
            offset = int((found or {}).get("offset", 0))
        self._positions[partition] = offset
        return offset

    def stop(self, partition: int) -> None:
        self._positions.pop(partition, None)

    def ends(self) -> dict[int, int]:
        """The next offsets; readers never see an open transaction."""
        with translated(f"ends of {self._topic!r}"):
            return self._ends(range(self._count))

    def _ends(self, partitions: Iterable[int]) -> dict[int, int]:
        ids = [f"{self._topic}|{partition}" for partition in partitions]
        found = self._db["log.ends"].find({"_id": {"$in": ids}})
        return {int(d["_id"].rpartition("|")[2]): d["next"] for d in found}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        return spread(keys, self._count)

    def close(self) -> None:
        """Leave the group; if the server does not answer, the session expires."""
        if self._membership:
            with suppress(LabkitError), translated(f"leave {self._group!r}"):
                self._membership.leave()
            self._membership, self._positions = None, {}


def _place(partition: int, offset: Any) -> Document:
    return {"p": partition, "o": offset}
