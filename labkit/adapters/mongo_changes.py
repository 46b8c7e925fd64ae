"""The change stream of a topic of the MongoDB log, for the relay."""

from __future__ import annotations

import time
from typing import Any

from pymongo import MongoClient, ReturnDocument
from pymongo.change_stream import CollectionChangeStream
from pymongo.database import Database
from pymongo.errors import OperationFailure

from labkit.adapters.mongo import translated
from labkit.adapters.mongo_log import MongoSource
from labkit.errors import Fenced
from labkit.ports import Document, Record

#: The server has forgotten what came after a token (ChangeStreamHistoryLost, and its kin).
_FORGOTTEN = (280, 286)
#: How long the server waits for something new before it says that there is nothing.
AWAIT_MS = 20


class MongoChanges:
    """The insertions of a topic. Collection ``log.relays``: {_id: topic, epoch, token}.

    Without a token, or with one that the server has forgotten, it first reads what lies in the
    collection from ``ends`` on; the change stream is opened before that, so nothing falls between.
    """

    def __init__(
        self,
        client: MongoClient[Document],
        db: Database[Document],
        topic: str,
        ends: dict[int, int],
    ) -> None:
        self._db, self._topic = db, topic
        with translated(f"follow {topic!r}"):
            found = db["log.relays"].find_one_and_update(
                {"_id": topic},
                {"$inc": {"epoch": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
            assert found is not None, "an upsert returns a document"
            self._epoch = found["epoch"]
            self._token: Any = found.get("token")
            self._behind: MongoSource | None = None
            self._stream = self._open()
        if self._token is None:
            self._behind = MongoSource(client, db, topic, None)
            self._left = {p: end for p, end in self._behind.ends().items() if end > ends[p]}
            for partition in self._left:
                self._behind.start(partition, ends[partition])

    def _open(self) -> CollectionChangeStream[Document]:
        try:
            return self._watch(self._token)
        except OperationFailure as error:
            if error.code not in _FORGOTTEN:
                raise
            self._token = None
            return self._watch(None)

    def _watch(self, token: Any) -> CollectionChangeStream[Document]:
        return self._db[f"log.{self._topic}"].watch(
            [{"$match": {"operationType": "insert"}}],
            resume_after=token,
            max_await_time_ms=AWAIT_MS,
        )

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """The next records, waiting up to ``timeout`` seconds for the first."""
        if self._behind is not None:
            return self._catch_up(limit)
        deadline = time.monotonic() + timeout
        found: list[Record] = []
        with translated(f"follow {self._topic!r}"):
            while len(found) < limit:
                change = self._stream.try_next()
                if change is not None:
                    found.append(_record(change["fullDocument"]))
                elif found or time.monotonic() >= deadline:
                    break
            self._token = self._stream.resume_token
        return found

    def _catch_up(self, limit: int) -> list[Record]:
        assert self._behind is not None
        batch = self._behind.poll(limit, 0)
        for partition, position in batch.positions.items():
            if position >= self._left[partition]:
                self._behind.stop(partition)
                del self._left[partition]
        if not self._left:
            self._behind = None
        return batch.records

    def save(self) -> None:
        """Save the resume token; not before all that lay behind was read."""
        if self._behind is not None:
            return
        with translated(f"save the token of {self._topic!r}"):
            own = {"_id": self._topic, "epoch": self._epoch}
            token = self._token or self._stream.resume_token
            done = self._db["log.relays"].update_one(own, {"$set": {"token": token}})
        if done.matched_count != 1:
            raise Fenced(f"another relay of {self._topic!r} took over")

    def close(self) -> None:
        """Close the cursor."""
        self._stream.close()


def _record(document: Document) -> Record:
    place = document["_id"]
    return Record(place["p"], place["o"], bytes(document["key"]), bytes(document["value"]))
