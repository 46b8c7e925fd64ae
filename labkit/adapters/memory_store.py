"""The in-memory twin of MongoDB: the same port and guarantees, no server, single-threaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import bson
from bson.errors import BSONError
from msgspec import structs

from labkit.adapters.memory_changes import MemoryChanges
from labkit.adapters.plain import PLAIN
from labkit.errors import Conflict, Duplicate, Fenced, Unstorable
from labkit.ports.store import Checkpoint, Document, Reads, Watched, Writes


class MemoryStore:
    """Collections in memory; a transaction passes all checks before it changes anything."""

    def __init__(self) -> None:
        self._collections: dict[str, dict[str, Document]] = {}
        self._checkpoints: dict[str, dict[str, Checkpoint]] = {}
        self._listeners: list[MemoryChanges] = []

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        known = self._checkpoints.setdefault(checkpoints, {})
        at = known.get(id, Checkpoint(id, 0))
        known[id] = structs.replace(at, epoch=at.epoch + 1)
        self._tell(checkpoints, [id])
        return known[id]

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        known = self._checkpoints.setdefault(checkpoints, {})
        for old, _ in moves:
            at = known.get(old.id)
            if at is None or (at.epoch, at.position) != (old.epoch, old.position):
                raise Fenced(f"checkpoint {old.id!r} is at {at}, expected {old}")
        self._check(writes)
        for collection, ids in writes.deletes.items():
            for id in ids:
                self._collections.get(collection, {}).pop(id, None)
                self._checkpoints.get(collection, {}).pop(id, None)
        for group in (writes.inserts, writes.replaces):
            for collection, documents in group.items():
                present = self._collections.setdefault(collection, {})
                present.update({d["_id"]: _stored(d) for d in documents})
        known.update({new.id: new for _, new in moves})
        self._tell(checkpoints, [new.id for _, new in moves])
        for group in (writes.inserts, writes.replaces):
            for collection, documents in group.items():
                self._tell(collection, [document["_id"] for document in documents])
        for collection, ids in writes.deletes.items():
            self._tell(collection, ids)

    def _check(self, writes: Writes) -> None:
        for collection, documents in writes.inserts.items():
            present, fresh = self._collections.setdefault(collection, {}), set[str]()
            for document in documents:
                if document["_id"] in present or document["_id"] in fresh:
                    raise Duplicate(f"{document['_id']!r} in {collection!r}")
                fresh.add(document["_id"])
        for collection, documents in writes.replaces.items():
            present = self._collections.setdefault(collection, {})
            for document in documents:
                if document["_id"] not in present:
                    raise Conflict(f"{document['_id']!r} is not in {collection!r}")
                rev = present[document["_id"]].get("rev")
                if "rev" in document and rev != document["rev"] - 1:
                    raise Conflict(f"{document['_id']!r} in {collection!r} has revision {rev}")

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        return list(self._checkpoints.get(checkpoints, {}).values())

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        present = self._collections.get(collection, {})
        return {id: copy.deepcopy(present[id]) for id in ids if id in present}

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
        present = self._collections.get(collection, {}).values()
        found = [d for d in present if all(d.get(k) == v for k, v in where.items())]
        for name, most in (at_most or {}).items():
            found = [d for d in found if name in d and d[name] <= most]
        for key, direction in reversed(sort):
            found.sort(key=lambda d: d[key], reverse=direction < 0)
        if after:
            found = [d for d in found if _follows(d, sort, after)]
        if fields:
            found = [{k: v for k, v in d.items() if k in ("_id", *fields)} for d in found]
        return copy.deepcopy(found[: limit or None])

    def totals(
        self,
        collection: str,
        by: str,
        fields: Sequence[str],
        sort: str = "",
        limit: int = 0,
        where: Document | None = None,
    ) -> list[Document]:
        sums: dict[Any, Document] = {}
        for document in self.find(collection, where or {}):
            key = document[by]
            total = sums.setdefault(key, {"_id": key, **dict.fromkeys(fields, 0)})
            for name in fields:
                total[name] += document[name]
        found = sorted(sums.values(), key=lambda d: d["_id"])
        if sort:
            found.sort(key=lambda d: d[sort], reverse=True)
        return found[: limit or None]

    def count(self, collection: str) -> int:
        return len(self._collections.get(collection, {}))

    def snapshot(self) -> AbstractContextManager[Reads]:
        """A shallow copy is enough, because documents are replaced and never changed in place."""
        frozen = MemoryStore()
        frozen._collections = {name: dict(held) for name, held in list(self._collections.items())}
        frozen._checkpoints = {name: dict(held) for name, held in list(self._checkpoints.items())}
        return nullcontext(frozen)

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        """Create the collection; a dictionary needs no index."""
        self._collections.setdefault(collection, {})

    def discard(self, collections: Iterable[str]) -> None:
        for name in collections:
            self._collections.pop(name, None)
            self._tell(name, [""])

    def changes(self, watched: Watched, pause: float = 0.05) -> MemoryChanges:
        listener = MemoryChanges(watched, self._listeners)
        self._listeners.append(listener)
        return listener

    def _tell(self, collection: str, ids: Iterable[str]) -> None:
        for listener in self._listeners:
            listener.hear(collection, ids)

    def collections(self) -> list[str]:
        return sorted({*self._collections, *self._checkpoints})

    def version(self) -> str:
        return "memory"

    def drop(self) -> None:
        for collection in self.collections():
            self._tell(collection, [""])
        self._collections.clear()
        self._checkpoints.clear()

    def close(self) -> None:
        """The documents live as long as this object."""


def _follows(document: Document, sort: Sequence[tuple[str, int]], after: Sequence[Any]) -> bool:
    for (field, direction), value in zip(sort, after, strict=True):
        if document[field] != value:
            return bool(document[field] > value) == (direction > 0)
    return False


def _stored(document: Document) -> Document:
    """What MongoDB would give back; raises ``Unstorable`` where it would not take it."""
    try:
        return bson.decode(bson.encode(document), PLAIN)
    except (BSONError, OverflowError) as error:
        raise Unstorable(f"MongoDB cannot hold this: {error}") from error
