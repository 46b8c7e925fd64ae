"""The change stream of views, for subscriptions and for the cache of the query handler."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

from pymongo import MongoClient
from pymongo.change_stream import DatabaseChangeStream
from pymongo.database import Database
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from labkit.adapters.mongo import translated
from labkit.ports.store import Change, Document, Noticed, Watched

#: Writers may never pause, so a burst is told in parts: of so many changes, or so many seconds.
MOST_CHANGES = 10_000
MOST_SECONDS = 0.05
#: Of a change no more is needed than what it is about.
FIELDS = {"operationType": 1, "ns": 1, "documentKey": 1}
#: All of a collection has gone; the last two end the stream.
GONE = ("drop", "rename", "dropDatabase", "invalidate")


class MongoWatch:
    """What changes in some collections of a database, from a majority's point of view.

    It begins at an instant that a majority had seen when it was opened, and reads by majority are
    never behind that: what a read does not show, the stream tells. pymongo mends a stream whose
    server or cursor has gone; where that is not possible (the server has forgotten what came after
    the token, say) it is begun anew, and the next poll says that something may be lost.
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
            # The time of a read by majority is one that a majority has seen; that of any other
            # command may lie ahead of it, and what is written between would be in no read, yet
            # before the stream.
            self._db["watch"].find_one({"_id": 0}, session=session)
            now = session.operation_time
        return self._db.watch(
            [{"$match": _wanted(self._watched)}, {"$project": FIELDS}],
            start_at_operation_time=now,
            max_await_time_ms=max(1, int(self._pause * 1_000)),
        )

    def poll(self, timeout: float) -> Noticed:
        """What changed; after the first change it goes on until there is a pause."""
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
        """Close the cursor; of a server that is gone there is none."""
        with suppress(PyMongoError):
            self._stream.close()


def _wanted(watched: Watched) -> Document:
    """As the server matches it, on its way through its log."""
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
