"""The change stream of views, for subscriptions and the cache of the query handler."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

from pymongo import MongoClient
from pymongo.change_stream import DatabaseChangeStream
from pymongo.database import Database
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from labkit.adapters.mongo_client import translated
from labkit.ports.store import Change, Document, Noticed, Watched

#: The limits of one poll during a burst of writes.
MOST_CHANGES = 10_000
MOST_SECONDS = 0.05
#: A change carries only the identity of its document.
FIELDS = {"operationType": 1, "ns": 1, "documentKey": 1}
#: The whole collection is gone; the last two also end the stream.
GONE = ("drop", "rename", "dropDatabase", "invalidate")


class MongoWatch:
    """The majority-committed changes of some collections of a database.

    The stream starts at a time that a majority had already seen. Majority reads are never behind
    that time, so the stream reports every change that an earlier read did not show. pymongo resumes
    the stream when its server or cursor fails. If it cannot resume (for example because the oplog
    no longer reaches back to the token), the stream restarts, and the poll reports ``lost``.
    """

    def __init__(
        self,
        client: MongoClient[Document],
        db: Database[Document],
        watched: Watched,
        pause: float,
    ) -> None:
        self._client, self._db = client, db
        self._watched = watched
        self._pause = pause
        self._doing = f"watch {', '.join(watched)}"
        with translated(self._doing):
            self._stream = self._open()

    def _open(self) -> DatabaseChangeStream[Document]:
        with self._client.start_session() as session:
            # A majority read returns a time that a majority has seen. The time of another command
            # may be later, and changes between the two would be in no read and not in the stream.
            self._db["watch"].find_one({"_id": 0}, session=session)
            now = session.operation_time
        return self._db.watch(
            [{"$match": _wanted(self._watched)}, {"$project": FIELDS}],
            start_at_operation_time=now,
            max_await_time_ms=max(1, int(self._pause * 1_000)),
        )

    def poll(self, timeout: float) -> Noticed:
        """See the port; after the first change it continues until the stream pauses."""
        deadline = time.monotonic() + timeout
        found: set[Change] = set()
        with translated(self._doing):
            while len(found) < MOST_CHANGES:
                try:
                    change = self._stream.try_next()
                    ended = not self._stream.alive
                except ConnectionFailure:
                    raise
                except OperationFailure:
                    ended = True
                if ended:
                    self.close()
                    self._stream = self._open()
                    return Noticed(frozenset(found), lost=True)
                if change is not None:
                    if not found:
                        deadline = time.monotonic() + MOST_SECONDS
                    found.add(_change(change))
                    over = time.monotonic() >= deadline
                else:
                    over = bool(found) or time.monotonic() >= deadline
                if over:
                    break
        return Noticed(frozenset(found))

    def close(self) -> None:
        """Close the cursor, if the server still has one."""
        with suppress(PyMongoError):
            self._stream.close()


def _wanted(watched: Watched) -> Document:
    """The filter that the server applies to its change stream."""
    ways: list[Document] = [{"operationType": {"$in": ["dropDatabase", "invalidate"]}}]
    for name, ids in watched.items():
        within: Document = {"ns.coll": {"$regex": f"^{re.escape(name)}(@[0-9]+)?$"}}
        if ids is not None:
            either = [{"documentKey._id": {"$in": list(ids)}}, {"operationType": {"$in": GONE}}]
            within["$or"] = either
        ways.append(within)
    return {"$or": ways}


def _change(change: dict[str, Any]) -> Change:
    name = change.get("ns", {}).get("coll", "").partition("@")[0]
    return Change(name, change.get("documentKey", {}).get("_id", ""))
