"""The in-memory twin of MongoDB: same port, same promises, no server. It runs in one thread."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from msgspec import structs

from labkit.errors import Conflict, Duplicate, Fenced
from labkit.ports.store import Change, Checkpoint, Document, Noticed, Reads, Watched, Writes


class MemoryStore:
    """Collections in memory; a transaction is checked whole before it changes anything."""

    def __init__(self) -> None:
        self._collections: dict[str, dict[str, Document]] = {}
        self._checkpoints: dict[str, dict[str, Checkpoint]] = {}
        self._listeners: list[MemoryChanges] = []

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        """Raise the epoch."""
        known = self._checkpoints.setdefault(checkpoints, {})
        at = known.get(id, Checkpoint(id, 0))
        known[id] = structs.replace(at, epoch=at.epoch + 1)
        self._tell(checkpoints, [id])
        return known[id]

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        """All or nothing."""
        known = self._checkpoints.setdefault(checkpoints, {})
        for old, _ in moves:
            at = known.get(old.id)
            if at is None or (at.epoch, at.position) != (old.epoch, old.position):
                raise Fenced(f"checkpoint {old.id!r} is at {at}, expected {old}")
        for collection, documents in writes.inserts.items():
            present, fresh = self._collections.setdefault(collection, {}), set[str]()
            for document in documents:
                if document["_id"] in present or document["_id"] in fresh:
                    raise Duplicate(f"{document['_id']!r} in {collection!r}")
                fresh.add(document["_id"])
        for collection, documents in writes.replaces.items():
            present = self._collections.setdefault(collection, {})
            for document in documents:
                rev = present.get(document["_id"], {}).get("rev")
                if "rev" in document and rev != document["rev"] - 1:
                    raise Conflict(f"{document['_id']!r} in {collection!r} is of revision {rev}")
        for collection, ids in writes.deletes.items():
            for id in ids:
                self._collections.get(collection, {}).pop(id, None)
                self._checkpoints.get(collection, {}).pop(id, None)
        for group in (writes.inserts, writes.replaces):
            for collection, documents in group.items():
                present = self._collections.setdefault(collection, {})
                present.update({d["_id"]: copy.deepcopy(d) for d in documents})
        known.update({new.id: new for _, new in moves})
        self._tell(checkpoints, [new.id for _, new in moves])
        for group in (writes.inserts, writes.replaces):
            for collection, documents in group.items():
                self._tell(collection, [document["_id"] for document in documents])
        for collection, ids in writes.deletes.items():
            self._tell(collection, ids)

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        """All checkpoints of a collection."""
        return list(self._checkpoints.get(checkpoints, {}).values())

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist."""
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
        """Equality, upper bounds, and a place to go on from."""
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
        """Sums by a field."""
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
        """The number of documents."""
        return len(self._collections.get(collection, {}))

    def snapshot(self) -> AbstractContextManager[Reads]:
        """A store that stays as this one is now: documents are replaced, never changed in place."""
        frozen = MemoryStore()
        frozen._collections = {name: dict(held) for name, held in list(self._collections.items())}
        frozen._checkpoints = {name: dict(held) for name, held in list(self._checkpoints.items())}
        return nullcontext(frozen)

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        """Creates the collection; a dictionary needs no index."""
        self._collections.setdefault(collection, {})

    def discard(self, collections: Iterable[str]) -> None:
        """Drop collections."""
        for name in collections:
            self._collections.pop(name, None)
            self._tell(name, [""])

    def changes(self, watched: Watched, pause: float = 0.05) -> MemoryChanges:
        """Whatever is written from now on."""
        listener = MemoryChanges(watched, self._listeners)
        self._listeners.append(listener)
        return listener

    def _tell(self, collection: str, ids: Iterable[str]) -> None:
        for listener in self._listeners:
            listener.hear(collection, ids)

    def collections(self) -> list[str]:
        """The names of the collections."""
        return sorted({*self._collections, *self._checkpoints})

    def version(self) -> str:
        """No server."""
        return "memory"

    def drop(self) -> None:
        """Delete everything."""
        for collection in self.collections():
            self._tell(collection, [""])
        self._collections.clear()
        self._checkpoints.clear()

    def close(self) -> None:
        """Nothing to close: the documents live as long as this object."""


#: A listener that is not asked for so many changes is told that some were lost.
MOST_CHANGES = 10_000
#: Without anything to tell, a poll waits for so long at most: other threads may write meanwhile.
IDLE_SECONDS = 0.005


class MemoryChanges:
    """What was written to the collections of one listener."""

    def __init__(self, watched: Watched, listeners: list[MemoryChanges]) -> None:
        self._watched = watched
        self._listeners = listeners
        self._heard: set[Change] = set()
        self._lost = False

    def hear(self, collection: str, ids: Iterable[str]) -> None:
        """Called by the store."""
        name = collection.partition("@")[0]
        if name not in self._watched:
            return
        wanted = self._watched[name]
        self._heard |= {Change(name, id) for id in ids if wanted is None or not id or id in wanted}
        if len(self._heard) > MOST_CHANGES:
            self.forget()

    def forget(self) -> None:
        """As if the server had forgotten what came after the token."""
        self._heard, self._lost = set(), True

    def poll(self, timeout: float) -> Noticed:
        """What there is."""
        if not self._heard and not self._lost:
            time.sleep(min(timeout, IDLE_SECONDS))
        found = Noticed(frozenset(self._heard), self._lost)
        self._heard, self._lost = set(), False
        return found

    def close(self) -> None:
        """Hear nothing more."""
        if self in self._listeners:
            self._listeners.remove(self)


def _follows(document: Document, sort: Sequence[tuple[str, int]], after: Sequence[Any]) -> bool:
    for (field, direction), value in zip(sort, after, strict=True):
        if document[field] != value:
            return bool(document[field] > value) == (direction > 0)
    return False
