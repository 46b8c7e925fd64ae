"""Who has read which documents, so that a change finds those whom it concerns at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from labkit.ports.store import Noticed
from labkit.read.view_reads import Place

K = TypeVar("K")


class Readers(Generic[K]):
    """Readers by the places that they have read."""

    def __init__(self) -> None:
        self._places: dict[K, frozenset[Place]] = {}
        self._readers: dict[str, dict[str | None, set[K]]] = {}  # by collection and id

    def put(self, reader: K, places: Iterable[Place]) -> None:
        """A reader with all that it has read, in place of what was known of it."""
        self.drop(reader)
        self._places[reader] = frozenset(places)
        for collection, id in self._places[reader]:
            self._readers.setdefault(collection, {}).setdefault(id, set()).add(reader)

    def drop(self, reader: K) -> None:
        """Forget a reader, if it is known."""
        for collection, id in self._places.pop(reader, ()):
            ids = self._readers[collection]
            ids[id].discard(reader)
            if not ids[id]:
                del ids[id]
            if not ids:
                del self._readers[collection]

    def concerned(self, noticed: Noticed) -> set[K]:
        """Whose answers may be others now; after a loss, or a switch of a view: all."""
        if noticed.lost or any(_is_pointer(change.collection) for change in noticed.changes):
            return set(self._places)
        found: set[K] = set()
        for change in noticed.changes:
            ids = self._readers.get(change.collection, {})
            found.update(ids.get(None, ()))
            if change.id:
                found.update(ids.get(change.id, ()))
            else:  # the whole collection
                found.update(*ids.values())
        return found


def _is_pointer(collection: str) -> bool:
    """Whether it says which generation of a view serves."""
    return collection.endswith(".checkpoints")
