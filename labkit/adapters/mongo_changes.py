"""The change stream of a topic of the log on MongoDB, for the relay."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pymongo import MongoClient
from pymongo.change_stream import CollectionChangeStream
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from labkit.adapters.mongo_client import raise_epoch, translated
from labkit.adapters.mongo_records import as_record
from labkit.adapters.mongo_source import MongoSource
from labkit.errors import Fenced
from labkit.ports.broker import MAX_BATCH_BYTES, Record
from labkit.ports.store import Document

#: The oplog no longer reaches back to the token (ChangeStreamHistoryLost and related errors).
_TOKEN_EXPIRED = (280, 286)
#: How long the server waits for a change before it returns none.
AWAIT_MS = 100


class MongoChanges:
    """The insertions of a topic. Collection ``log.relays``: {_id: topic, epoch, token, positions}.

    The resume token may be missing, expired, or ahead of the published records. Then the reader
    first catches up from the collection. It opens the change stream before that, so it misses no
    record.
    """

    def __init__(self, client: MongoClient[Document], db: Database[Document], topic: str) -> None:
        self._db, self._topic = db, topic
        self._reader = MongoSource(client, db, topic, None)
        self._stream: CollectionChangeStream[Document] | None = None
        self._positions: dict[int, int] = {}
        self._behind: dict[int, int] = {}  # partition -> end of the collection at the start
        with translated(f"follow {topic!r}"):
            found = raise_epoch(db["log.relays"], topic)
        self._epoch = found["epoch"]
        self._token: Any = found.get("token")
        self._saved: list[list[int]] = found.get("positions", [])

    def start(self, ends: Mapping[int, int]) -> None:
        """Continue after the token, or from ``ends`` (the published offsets)."""
        self._positions = dict(ends)
        if any(ends[partition] < position for partition, position in self._saved):
            self._token = None
        with translated(f"follow {self._topic!r}"):
            self._stream = self._open()
        if self._token is None:
            for partition, end in self._reader.ends().items():
                if end > ends[partition]:
                    self._behind[partition] = end
                    self._reader.start(partition, ends[partition])

    def _open(self) -> CollectionChangeStream[Document]:
        try:
            return self._watch()
        except OperationFailure as error:
            if error.code not in _TOKEN_EXPIRED:
                raise
            self._token = None
            return self._watch()

    def _watch(self) -> CollectionChangeStream[Document]:
        return self._db[f"log.{self._topic}"].watch(
            [{"$match": {"operationType": "insert"}}],
            resume_after=self._token,
            max_await_time_ms=AWAIT_MS,
        )

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """The next records; waits up to ``timeout`` seconds for the first."""
        if self._behind:
            return self._catch_up(limit)
        assert self._stream is not None, "start comes first"
        deadline = time.monotonic() + timeout
        found: list[Record] = []
        size = 0
        ends: dict[int, int] = {}
        with translated(f"follow {self._topic!r}"):
            while len(found) < limit and size < MAX_BATCH_BYTES:
                if (change := self._stream.try_next()) is not None:
                    record = as_record(change["fullDocument"])
                    found.append(record)
                    size += len(record.value)
                    self._reached(record.partition, record.offset + 1)
                    # At the end of the topic, another request would only wait.
                    ends = ends or self._reader.ends()
                    if all(self._positions[p] >= end for p, end in ends.items()):
                        break
                elif found or time.monotonic() >= deadline:
                    break
            self._token = self._stream.resume_token
        return found

    def _catch_up(self, limit: int) -> list[Record]:
        batch = self._reader.poll(limit, 0)
        for partition, position in batch.positions.items():
            self._reached(partition, position)
            if position >= self._behind[partition]:
                self._reader.stop(partition)
                del self._behind[partition]
        return batch.records

    def _reached(self, partition: int, position: int) -> None:
        self._positions[partition] = max(position, self._positions[partition])

    def check(self) -> None:
        """Raise ``Fenced`` if another relay has claimed the topic."""
        with translated(f"look after the relay of {self._topic!r}"):
            found = self._db["log.relays"].find_one({"_id": self._topic})
        if found is None or found["epoch"] != self._epoch:
            raise self._taken_over()

    def save(self) -> None:
        """Save the resume token, unless the reader still catches up."""
        if self._behind or self._token is None:
            return
        with translated(f"save the token of {self._topic!r}"):
            own = {"_id": self._topic, "epoch": self._epoch}
            reached = {
                "token": self._token,
                "positions": [list(p) for p in self._positions.items()],
            }
            done = self._db["log.relays"].update_one(own, {"$set": reached})
        if done.matched_count != 1:
            raise self._taken_over()

    def _taken_over(self) -> Fenced:
        return Fenced(f"another relay of {self._topic!r} took over")

    def close(self) -> None:
        """Close the cursor, if the server still has one."""
        with suppress(PyMongoError):
            if self._stream is not None:
                self._stream.close()
