"""Reading documents from MongoDB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from pymongo.client_session import ClientSession
from pymongo.database import Database

from labkit.adapters.mongo_client import translated
from labkit.ports.store import Checkpoint, Document


class MongoReads:
    """Reads of one database: of the newest data, or of the snapshot of a session."""

    def __init__(self, db: Database[Document], session: ClientSession | None = None) -> None:
        self._db = db
        self._session = session

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        with translated(f"read {checkpoints!r}"):
            return [
                as_checkpoint(found) for found in self._db[checkpoints].find(session=self._session)
            ]

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
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
        bounds: dict[str, Document] = {n: {"$lte": most} for n, most in (at_most or {}).items()}
        further = _after(sort, after) if after else {}
        with translated(f"find in {collection!r}"):
            cursor = self._db[collection].find(
                {"$and": [where, bounds, further]},  # all may be about one field
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
        sums: dict[str, Any] = {name: {"$sum": f"${name}"} for name in fields}
        order = {sort: -1, "_id": 1} if sort else {"_id": 1}
        pipeline: list[Document] = [
            {"$match": where or {}},
            # With this sort MongoDB reads the index alone.
            {"$sort": {by: 1}},
            {"$group": {"_id": f"${by}", **sums}},
            {"$sort": order},
        ]
        if limit:
            pipeline.append({"$limit": limit})
        with translated(f"total {collection!r}"):
            return list(self._db[collection].aggregate(pipeline, session=self._session))

    def count(self, collection: str) -> int:
        with translated(f"count {collection!r}"):
            return self._db[collection].count_documents({}, session=self._session, hint="_id_")


def _after(sort: Sequence[tuple[str, int]], after: Sequence[Any]) -> Document:
    """The filter for what follows ``after`` in the order of ``sort``.

    The first field also gets a bound of its own, which limits the scan of the index.
    """
    ways: list[Document] = []
    same: Document = {}
    for (field, direction), value in zip(sort, after, strict=True):
        ways.append({**same, field: {"$gt" if direction > 0 else "$lt": value}})
        same[field] = value
    (first, direction), *_ = sort
    return {"$or": ways, first: {"$gte" if direction > 0 else "$lte": after[0]}}


def as_checkpoint(found: Document) -> Checkpoint:
    return msgspec.convert({**found, "id": found["_id"]}, Checkpoint)
