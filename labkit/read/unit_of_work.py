"""The documents of one batch: loaded once, changed in memory, written once."""

from __future__ import annotations

from collections.abc import Iterable

from labkit.ports.store import Document, Reads, Writes
from labkit.read.generations import named


class UnitOfWork:
    """Documents by the plain names of their collections; ``generation`` says where they are."""

    def __init__(self, store: Reads, generation: int = 0) -> None:
        self._store = store
        self._generation = generation
        self._documents: dict[str, dict[str, Document]] = {}
        self._stored: set[tuple[str, str]] = set()
        self._removed: dict[str, list[str]] = {}

    def load(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Bring the documents that exist among (collection, id), one look-up a collection."""
        ids: dict[str, dict[str, None]] = {}
        for collection, id in wanted:
            ids.setdefault(collection, {})[id] = None
        for collection, keys in ids.items():
            found = self._store.load(named(collection, self._generation), keys)
            self._documents.setdefault(collection, {}).update(found)
            self._stored.update((collection, id) for id in found)

    def get(self, collection: str, id: str) -> Document | None:
        """A document of this batch; change it in place."""
        return self._documents.get(collection, {}).get(id)

    def add(self, collection: str, document: Document) -> Document:
        """A document that is new; or again there, if this batch has taken it out."""
        if (gone := self._removed.get(collection)) and document["_id"] in gone:
            gone.remove(document["_id"])
        self._documents.setdefault(collection, {})[document["_id"]] = document
        return document

    def remove(self, collection: str, id: str) -> None:
        """Take a document out, if there is one."""
        if self._documents.get(collection, {}).pop(id, None) and (collection, id) in self._stored:
            self._removed.setdefault(collection, []).append(id)

    def added(self, collection: str) -> list[Document]:
        """What is new in a collection."""
        documents = self._documents.get(collection, {})
        return [d for id, d in documents.items() if (collection, id) not in self._stored]

    def writes(self) -> Writes:
        """All documents of the batch: inserts where they are new, which is far cheaper.

        A shared document is raised to its next revision.
        """
        removed = {named(name, self._generation): ids for name, ids in self._removed.items()}
        writes = Writes(deletes=removed)
        for collection, documents in self._documents.items():
            for id, document in documents.items():
                stored = (collection, id) in self._stored
                if stored and "rev" in document:
                    document["rev"] += 1
                into = writes.replaces if stored else writes.inserts
                into.setdefault(named(collection, self._generation), []).append(document)
        return writes
