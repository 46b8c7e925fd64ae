"""The store on MongoDB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import structs
from pymongo import IndexModel
from pymongo.errors import BulkWriteError, DocumentTooLarge
from pymongo.write_concern import WriteConcern

from labkit.adapters.mongo_client import MAJORITY, connect, raise_epoch, transaction, translated
from labkit.adapters.mongo_reads import MongoReads, as_checkpoint
from labkit.adapters.mongo_watch import MongoWatch
from labkit.errors import Conflict, Fenced
from labkit.ports.store import Checkpoint, Document, Reads, Watched, Writes

#: Writes in one command. MongoDB takes 100,000, of 16 MB together; where they are more, fewer go.
MOST_WRITES = (10_000, 1_000, 100, 10, 1)

__all__ = ["MAJORITY", "MongoStore", "connect", "translated"]


class MongoStore(MongoReads):
    """One database of a MongoDB replica set.

    ``write_concern`` is the write concern of ``advance`` (see ``Settings``). Below "majority" the
    reads are local reads of the primary: a majority read would not show the store's own last
    writes, and the next fold would lose them.
    """

    def __init__(self, uri: str, database: str, write_concern: str = "majority") -> None:
        majority = write_concern == "majority"
        self._concern = MAJORITY if majority else WriteConcern(int(write_concern))
        self._client, db = connect(uri, database, "majority" if majority else "local")
        super().__init__(db)

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        new = {"position": 0, "command": -1, "ignored": 0, "parked": 0}
        with translated(f"claim {id!r}"):
            return as_checkpoint(raise_epoch(self._db[checkpoints], id, new))

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        """See the port."""
        with translated(f"advance {[old.id for old, _ in moves]}"):
            for most in MOST_WRITES:
                try:
                    self._advance(checkpoints, moves, writes, most)
                except DocumentTooLarge:  # a command, before it was sent; nothing is written
                    if most == 1:
                        raise
                else:
                    return

    def _advance(
        self,
        checkpoints: str,
        moves: Sequence[tuple[Checkpoint, Checkpoint]],
        writes: Writes,
        most: int,
    ) -> None:
        """One transaction, with at most so many writes in a command; checkpoints come first, so
        that a fenced owner writes nothing else."""
        with transaction(self._client, self._concern) as session:

            def run(command: str, collection: str, name: str, parts: list[Document]) -> int:
                """How many of the documents were inserted or found.

                ``insert_many`` and ``bulk_write`` do the same and take nearly twice the CPU time:
                2.4 instead of 1.4 us to insert a document, 4.4 instead of 2.4 us to replace one.
                """
                count = 0
                for start in range(0, len(parts), most):
                    whole: Document = {command: collection, name: parts[start : start + most]}
                    whole["ordered"] = False
                    options = self._db.codec_options
                    done = self._db.command(whole, codec_options=options, session=session)
                    if "writeErrors" in done:
                        raise BulkWriteError(done)
                    count += done["n"]
                return count

            if run("update", checkpoints, "updates", [_move(*move) for move in moves]) < len(moves):
                raise Fenced(f"one of these checkpoints has moved on: {[old for old, _ in moves]}")
            for collection, documents in writes.inserts.items():
                run("insert", collection, "documents", documents)
            for collection, documents in writes.replaces.items():
                replaces: list[Document] = [{"q": _before(d), "u": d} for d in documents]
                if run("update", collection, "updates", replaces) < len(documents):
                    raise Conflict(f"another writer was first in {collection!r}")
            for collection, ids in writes.deletes.items():
                if ids:
                    self._db[collection].delete_many({"_id": {"$in": ids}}, session=session)

    @contextmanager
    def snapshot(self) -> Iterator[Reads]:
        """See the port; the first read of the session chooses the newest majority snapshot."""
        with self._client.start_session(snapshot=True) as session:
            yield MongoReads(self._db, session)

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        with translated(f"index {collection!r}"):
            options = {"sparse": True} if sparse else {}  # MongoDB rejects sparse=False for _id
            self._db[collection].create_indexes([IndexModel(list(keys), **options)])

    def discard(self, collections: Iterable[str]) -> None:
        for name in collections:
            with translated(f"drop {name!r}"):
                self._db.drop_collection(name)

    def changes(self, watched: Watched, pause: float = 0.05) -> MongoWatch:
        return MongoWatch(self._client, self._db, watched, pause)

    def collections(self) -> list[str]:
        with translated("list collections"):
            return sorted(self._db.list_collection_names())

    def version(self) -> str:
        with translated("ask for the version"):
            return str(self._client.server_info()["version"])

    def drop(self) -> None:
        with translated(f"drop {self._db.name!r}"):
            self._client.drop_database(self._db.name)

    def close(self) -> None:
        self._client.close()


def _move(old: Checkpoint, new: Checkpoint) -> Document:
    """The update that moves a checkpoint from where it must be."""
    fields = structs.asdict(new)
    del fields["id"]
    expected = {"_id": old.id, "epoch": old.epoch, "position": old.position}
    return {"q": expected, "u": {"$set": fields}}


def _before(document: Document) -> Document:
    """The filter for the document to replace; a shared document must have the previous revision."""
    if "rev" in document:
        return {"_id": document["_id"], "rev": document["rev"] - 1}
    return {"_id": document["_id"]}
