"""The store on MongoDB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from bson.errors import BSONError
from msgspec import structs
from pymongo import IndexModel, MongoClient, ReadPreference, ReplaceOne, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from labkit.errors import Conflict, Duplicate, Fenced, OutcomeUnknown, Unreachable, Unstorable
from labkit.ports.store import Checkpoint, Document, Reads, Watched, Writes

if TYPE_CHECKING:
    from labkit.adapters.mongo_watch import MongoWatch

#: How long a call looks for a server before it gives up.
SELECTION_MS = 5_000
#: How long a write waits for the majority, and a reply for the network.
WRITE_MS = 20_000
SOCKET_MS = 30_000
MAJORITY = WriteConcern("majority", wtimeout=WRITE_MS)
_DUPLICATE_KEY = 11_000
#: A snapshot from before a change of a collection that it reads (SnapshotUnavailable).
_TOO_NEW = 246


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Errors of pymongo as ours."""
    try:
        yield
    except (BulkWriteError, DuplicateKeyError) as error:
        codes = [e["code"] for e in (error.details or {}).get("writeErrors", [])] or [error.code]
        if _DUPLICATE_KEY in codes:
            raise Duplicate(f"{doing}: {error}") from error
        raise Fenced(f"{doing}: MongoDB undid it: {error}") from error
    except ConnectionFailure as error:
        if error.has_error_label("UnknownTransactionCommitResult"):
            raise OutcomeUnknown(f"{doing}: no answer to the commit") from error
        raise Unreachable(f"{doing}: MongoDB does not answer: {_short(error)}") from error
    except OperationFailure as error:
        if error.has_error_label("UnknownTransactionCommitResult"):
            raise OutcomeUnknown(f"{doing}: no majority answered the commit in time") from error
        if error.has_error_label("TransientTransactionError"):
            raise Conflict(f"{doing}: another writer was first") from error
        if error.code == _TOO_NEW:
            raise Conflict(f"{doing}: a collection has just changed") from error
        raise Unreachable(f"{doing}: MongoDB refused: {_short(error)}") from error
    except PyMongoError as error:
        raise Unreachable(f"{doing}: MongoDB: {_short(error)}") from error
    except (BSONError, OverflowError) as error:
        raise Unstorable(f"{doing}: MongoDB cannot hold this: {error}") from error


def _short(error: PyMongoError) -> str:
    return str(error).split(", Topology Description")[0].split(", full error")[0]


def connect(
    uri: str, database: str, read_concern: str = "majority"
) -> tuple[MongoClient[Document], Database[Document]]:
    """A client, and a database whose reads and writes cannot be undone by an election."""
    with translated(f"connect to {uri.rpartition('@')[2]!r}"):
        client: MongoClient[Document] = MongoClient(
            uri,
            serverSelectionTimeoutMS=SELECTION_MS,
            socketTimeoutMS=SOCKET_MS,
            appname="labkit",
        )
        # Whatever the URI prefers: decisions and waits rest on what cannot be undone.
        return client, client.get_database(
            database,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern(read_concern),
            write_concern=MAJORITY,
        )


@contextmanager
def transaction(
    client: MongoClient[Document], write_concern: WriteConcern = MAJORITY
) -> Iterator[ClientSession]:
    """Everything in it, or nothing; what it reads is one snapshot."""
    with (
        client.start_session() as session,
        session.start_transaction(
            read_concern=ReadConcern("snapshot"),
            write_concern=write_concern,
            max_commit_time_ms=WRITE_MS,
        ),
    ):
        yield session


class MongoReads:
    """What one database holds: now, or in a session that sees one instant."""

    def __init__(self, db: Database[Document], session: ClientSession | None = None) -> None:
        self._db = db
        self._session = session

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        """All checkpoints of a collection."""
        with translated(f"read {checkpoints!r}"):
            return [
                _checkpoint(found) for found in self._db[checkpoints].find(session=self._session)
            ]

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """One look-up."""
        wanted = list(ids)
        if not wanted:
            return {}
        with translated(f"load from {collection!r}"):
            found = self._db[collection].find({"_id": {"$in": wanted}}, session=self._session)
            return {document["_id"]: document for document in found}

    def find(
        self,
        collection: str,
        where: Document,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        at_most: Mapping[str, int] | None = None,
        fields: Sequence[str] = (),
        after: Sequence[Any] = (),
    ) -> list[Document]:
        """Equality, upper bounds, and a place to go on from."""
        bounds: dict[str, Document] = {n: {"$lte": most} for n, most in (at_most or {}).items()}
        further = _after(sort, after, bounds) if after else {}
        with translated(f"find in {collection!r}"):
            cursor = self._db[collection].find(
                {**where, **bounds, **further},
                list(fields) or None,
                limit=limit,
                session=self._session,
            )
            return list(cursor.sort(list(sort)) if sort else cursor)

    def totals(
        self,
        collection: str,
        by: str,
        fields: Sequence[str],
        sort: str = "",
        limit: int = 0,
        where: Document | None = None,
    ) -> list[Document]:
        """Sums by a field."""
        sums: dict[str, Any] = {name: {"$sum": f"${name}"} for name in fields}
        order = {sort: -1, "_id": 1} if sort else {"_id": 1}
        pipeline: list[Document] = [
            {"$match": where or {}},
            # Asked for in this order, MongoDB reads the index and no document.
            {"$sort": {by: 1}},
            {"$group": {"_id": f"${by}", **sums}},
            {"$sort": order},
        ]
        if limit:
            pipeline.append({"$limit": limit})
        with translated(f"total {collection!r}"):
            return list(self._db[collection].aggregate(pipeline, session=self._session))

    def count(self, collection: str) -> int:
        """The number of documents."""
        with translated(f"count {collection!r}"):
            return self._db[collection].count_documents({}, session=self._session, hint="_id_")


class MongoStore(MongoReads):
    """One database of a MongoDB replica set.

    ``write_concern`` is what ``advance`` waits for (``settings.Settings``). Who does not wait for
    the majority must read what the primary has: its own last writes are not the majority's yet, and
    who folds on from what he read would lose them.
    """

    def __init__(self, uri: str, database: str, write_concern: str = "majority") -> None:
        majority = write_concern == "majority"
        self._concern = MAJORITY if majority else WriteConcern(int(write_concern))
        self._client, db = connect(uri, database, "majority" if majority else "local")
        super().__init__(db)

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        """Raise the epoch."""
        with translated(f"claim {id!r}"):
            found = self._db[checkpoints].find_one_and_update(
                {"_id": id},
                {
                    "$inc": {"epoch": 1},
                    "$setOnInsert": {"position": 0, "command": -1, "ignored": 0, "parked": 0},
                },
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        return _checkpoint(found)

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        """One MongoDB transaction. Checkpoints first: who lost them does no other work."""
        doing = f"advance {[old.id for old, _ in moves]}"
        with translated(doing), transaction(self._client, self._concern) as session:
            for old, new in moves:
                expected = {"_id": old.id, "epoch": old.epoch, "position": old.position}
                fields = structs.asdict(new)
                del fields["id"]
                done = self._db[checkpoints].update_one(expected, {"$set": fields}, session=session)
                if done.matched_count != 1:
                    raise Fenced(f"checkpoint {old.id!r} has moved on from {old}")
            for collection, documents in writes.inserts.items():
                if documents:
                    self._db[collection].insert_many(documents, ordered=False, session=session)
            for collection, documents in writes.replaces.items():
                if documents:
                    result = self._db[collection].bulk_write(
                        [ReplaceOne(_before(d), d) for d in documents],
                        ordered=False,
                        session=session,
                    )
                    if result.matched_count < len(documents):
                        raise Conflict(f"another writer was first in {collection!r}")
            for collection, ids in writes.deletes.items():
                if ids:
                    self._db[collection].delete_many({"_id": {"$in": ids}}, session=session)

    @contextmanager
    def snapshot(self) -> Iterator[Reads]:
        """The newest instant that a majority has: the session draws it at its first read."""
        with self._client.start_session(snapshot=True) as session:
            yield MongoReads(self._db, session)

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        """Make sure of an index."""
        with translated(f"index {collection!r}"):
            options = {"sparse": True} if sparse else {}  # MongoDB takes no False for _id
            self._db[collection].create_indexes([IndexModel(list(keys), **options)])

    def discard(self, collections: Iterable[str]) -> None:
        """Drop collections."""
        for name in collections:
            with translated(f"drop {name!r}"):
                self._db.drop_collection(name)

    def changes(self, watched: Watched, pause: float = 0.05) -> MongoWatch:
        """A change stream over the database."""
        from labkit.adapters.mongo_watch import MongoWatch

        return MongoWatch(self._client, self._db, watched, pause)

    def collections(self) -> list[str]:
        """The names of the collections."""
        with translated("list collections"):
            return sorted(self._db.list_collection_names())

    def version(self) -> str:
        """As the server says."""
        with translated("ask for the version"):
            return str(self._client.server_info()["version"])

    def drop(self) -> None:
        """Drop the database."""
        with translated(f"drop {self._db.name!r}"):
            self._client.drop_database(self._db.name)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def _after(
    sort: Sequence[tuple[str, int]], after: Sequence[Any], bounds: dict[str, Document]
) -> Document:
    """What follows on a place: the first field bounds the scan of the index, the rest decides.

    The bound goes to ``bounds``, beside the others of its field.
    """
    ways: list[Document] = []
    same: Document = {}
    for (field, direction), value in zip(sort, after, strict=True):
        ways.append({**same, field: {"$gt" if direction > 0 else "$lt": value}})
        same[field] = value
    (first, direction), *_ = sort
    bounds.setdefault(first, {})["$gte" if direction > 0 else "$lte"] = after[0]
    return {"$or": ways}


def _before(document: Document) -> Document:
    """What a document replaces: itself, and of a shared one the revision before."""
    if "rev" in document:
        return {"_id": document["_id"], "rev": document["rev"] - 1}
    return {"_id": document["_id"]}


def _checkpoint(found: Document | None) -> Checkpoint:
    assert found is not None, "an upsert returns a document"
    return msgspec.convert({**found, "id": found["_id"]}, Checkpoint)
