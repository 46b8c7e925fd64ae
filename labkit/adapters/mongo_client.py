"""The connection to MongoDB: translated errors, transactions, epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bson.errors import BSONError
from pymongo import MongoClient, ReadPreference, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
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

from labkit.adapters.plain import PLAIN
from labkit.errors import (
    Conflict,
    Duplicate,
    Fenced,
    OutcomeUnknown,
    TooSlow,
    Unreachable,
    Unstorable,
)
from labkit.ports.store import Document
from labkit.stack.gone import explained

#: How long a call searches for a server.
SELECTION_MS = 5_000
#: How long a write waits for the majority, and a call for its reply.
WRITE_MS = 20_000
SOCKET_MS = 30_000
MAJORITY = WriteConcern("majority", wtimeout=WRITE_MS)
_DUPLICATE_KEY = 11_000
#: SnapshotUnavailable: the snapshot is older than the last change of a collection that it reads.
_TOO_NEW = 246
#: MaxTimeMSExpired, NoSuchTransaction, TransactionExceededLifetimeLimitSeconds.
_OVER = {50, 251, 290}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Translate errors of pymongo."""
    try:
        yield
    except (BulkWriteError, DuplicateKeyError) as error:
        codes = [e["code"] for e in (error.details or {}).get("writeErrors", [])] or [error.code]
        if _DUPLICATE_KEY in codes:
            raise Duplicate(f"{doing}: {error}") from error
        raise Fenced(f"{doing}: MongoDB rolled it back: {error}") from error
    except ConnectionFailure as error:
        if error.has_error_label("UnknownTransactionCommitResult"):
            raise OutcomeUnknown(f"{doing}: no answer to the commit") from error
        raise Unreachable(
            explained(f"{doing}: MongoDB does not answer: {_short(error)}; see `labkit status`")
        ) from error
    except OperationFailure as error:
        if error.has_error_label("UnknownTransactionCommitResult"):
            raise OutcomeUnknown(f"{doing}: no majority answered the commit in time") from error
        if error.code in _OVER:
            raise TooSlow(f"{doing}: its transaction was over before its end") from error
        if error.has_error_label("TransientTransactionError"):
            raise Conflict(f"{doing}: another writer was first") from error
        if error.code == _TOO_NEW:
            raise Conflict(f"{doing}: a collection has just changed; try again") from error
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
    """A client and a database; no election can roll back what its majority reads and writes see."""
    with translated(f"connect to {uri.rpartition('@')[2]!r}"):
        client: MongoClient[Document] = MongoClient(
            uri,
            serverSelectionTimeoutMS=SELECTION_MS,
            socketTimeoutMS=SOCKET_MS,
            appname="labkit",
        )
        # This overrides the preferences of the URI: decisions need data that cannot be rolled back.
        return client, client.get_database(
            database,
            codec_options=PLAIN,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern(read_concern),
            write_concern=MAJORITY,
        )


@contextmanager
def transaction(
    client: MongoClient[Document], write_concern: WriteConcern = MAJORITY
) -> Iterator[ClientSession]:
    """A transaction whose reads see one snapshot."""
    with (
        client.start_session() as session,
        session.start_transaction(
            read_concern=ReadConcern("snapshot"),
            write_concern=write_concern,
            max_commit_time_ms=WRITE_MS,
        ),
    ):
        yield session


def raise_epoch(collection: Collection[Document], id: str, new: Document | None = None) -> Document:
    """Raise the epoch of a document, which fences its former owner; return the document.

    A missing document is inserted with the fields of ``new``.
    """
    update: Document = {"$inc": {"epoch": 1}}
    if new:
        update["$setOnInsert"] = new
    found = collection.find_one_and_update(
        {"_id": id}, update, upsert=True, return_document=ReturnDocument.AFTER
    )
    assert found is not None, "an upsert returns a document"
    return found
