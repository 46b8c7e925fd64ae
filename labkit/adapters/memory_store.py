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

_NUMBER = 1


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
        """See the port; each step sees what the steps before it have written, as in MongoDB."""
        known = dict(self._checkpoints.get(checkpoints, {}))
        for old, new in moves:
            at = known.get(old.id)
            if at is None or (at.epoch, at.position) != (old.epoch, old.position):
                raise Fenced(f"checkpoint {old.id!r} is at {at}, expected {old}")
            known[new.id] = new
        draft = self._draft(writes)
        if moves:
            self._checkpoints[checkpoints] = known
            self._tell(checkpoints, [new.id for _, new in moves])
        for collection, documents in draft.items():
            self._collections.setdefault(collection, {}).update(documents)
            self._tell(collection, documents)
        for collection, ids in writes.deletes.items():
            for id in ids:
                self._collections.get(collection, {}).pop(id, None)
                self._checkpoints.get(collection, {}).pop(id, None)
            self._tell(collection, ids)

    def _draft(self, writes: Writes) -> dict[str, dict[str, Document]]:
        """What the inserts and replaces write, by collection, if all of them may be done."""
        draft: dict[str, dict[str, Document]] = {}
        for collection, documents in writes.inserts.items():
            present = self._collections.get(collection, {})
            for document in [_stored(d) for d in documents]:
                fresh, id = draft.setdefault(collection, {}), document["_id"]
                if id in present or id in fresh:
                    raise Duplicate(f"{id!r} in {collection!r}")
                fresh[id] = document
        for collection, documents in writes.replaces.items():
            present = self._collections.get(collection, {})
            for document in [_stored(d) for d in documents]:
                fresh, id = draft.setdefault(collection, {}), document["_id"]
                before = fresh.get(id) or present.get(id)
                if before is None:
                    raise Conflict(f"{id!r} is not in {collection!r}")
                if "rev" in document and before.get("rev") != document["rev"] - 1:
                    raise Conflict(f"{id!r} in {collection!r} has revision {before.get('rev')}")
                fresh[id] = document
        return draft

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
        found = [d for d in present if all(_equals(d.get(k), v) for k, v in where.items())]
        for name, most in (at_most or {}).items():
            kind, bound = _rank(most)
            found = [d for d in found if (at := _rank(d.get(name)))[0] == kind and at[1] <= bound]
        for key, direction in reversed(sort):
            found.sort(key=lambda d: _rank(d.get(key)), reverse=direction < 0)
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
            key = document.get(by)
            total = sums.setdefault(_rank(key), {"_id": key, **dict.fromkeys(fields, 0)})
            for name in fields:
                kind, value = _rank(document.get(name))
                total[name] += value if kind == _NUMBER else 0
        found = sorted(sums.values(), key=lambda d: _rank(d["_id"]))
        if sort:
            found.sort(key=lambda d: _rank(d[sort]), reverse=True)
        return found[: limit or None]

    def count(self, collection: str) -> int:
        return len(self._collections.get(collection, {}))

    def snapshot(self) -> AbstractContextManager[Reads]:
        """A shallow copy is enough, because documents are replaced and never changed in place."""
        return nullcontext(self.copied())

    def copied(self) -> MemoryStore:
        """As it stands now."""
        found = MemoryStore()
        found._collections = {name: dict(held) for name, held in list(self._collections.items())}
        found._checkpoints = {name: dict(held) for name, held in list(self._checkpoints.items())}
        return found

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        """Create the collection; a dictionary needs no index."""
        self._collections.setdefault(collection, {})

    def discard(self, collections: Iterable[str]) -> None:
        for name in collections:
            self._collections.pop(name, None)
            self._checkpoints.pop(name, None)
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


def _rank(value: Any) -> tuple[int, Any]:
    """Where a value stands in the order of MongoDB: kinds first; what is missing is like None."""
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return 4, value
    if isinstance(value, int | float):
        return _NUMBER, value
    return (2 if isinstance(value, str) else 3), value


def _equals(found: Any, wanted: Any) -> bool:
    """A list also equals each of its elements."""
    inside = found if isinstance(found, list) else []
    return any(_rank(value) == _rank(wanted) for value in [found, *inside])


def _follows(document: Document, sort: Sequence[tuple[str, int]], after: Sequence[Any]) -> bool:
    for (field, direction), value in zip(sort, after, strict=True):
        (kind, found), (wanted, bound) = _rank(document.get(field)), _rank(value)
        if kind != wanted:
            return False  # MongoDB compares values of one kind only
        if found != bound:
            return bool(found > bound) == (direction > 0)
    return False


def _stored(document: Document) -> Document:
    """What MongoDB would give back; raises ``Unstorable`` where it would not take it."""
    try:
        return bson.decode(bson.encode(document), PLAIN)
    except (BSONError, OverflowError) as error:
        raise Unstorable(f"MongoDB cannot hold this: {error}") from error
