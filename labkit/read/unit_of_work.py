"""The documents of one batch: loaded once, changed in memory, written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from labkit.ports.store import Document, Reads, Writes
from labkit.read.generations import named


class Collection:
    """The documents of one collection in a batch, by id."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.removed: dict[str, None] = {}
        self._stored: set[str] = set()

    def loaded(self, found: Mapping[str, Document]) -> None:
        """Documents that are in the store."""
        self.documents.update(found)
        self._stored.update(found)

    def get(self, id: str) -> Document | None:
        """A document of this batch; change it in place."""
        return self.documents.get(id)

    def add(self, document: Document) -> Document:
        """A document that is new; or again there, if this batch has taken it out."""
        id = document["_id"]
        if self.removed:
            self.removed.pop(id, None)
        self.documents[id] = document
        return document

    def remove(self, id: str) -> None:
        """Take a document out, if there is one."""
        if self.documents.pop(id, None) and id in self._stored:
            self.removed[id] = None

    def split(self) -> tuple[list[Document], list[Document]]:
        """The documents that are new, and those that replace a stored one."""
        if not self._stored:
            return list(self.documents.values()), []
        new: list[Document] = []
        old: list[Document] = []
        for id, document in self.documents.items():
            (old if id in self._stored else new).append(document)
        return new, old


class UnitOfWork:
    """Documents by the plain names of their collections; ``generation`` says where they are."""

    def __init__(self, store: Reads, generation: int = 0) -> None:
        self._store = store
        self._generation = generation
        self._collections: dict[str, Collection] = {}

    def __getitem__(self, collection: str) -> Collection:
        try:
            return self._collections[collection]
        except KeyError:
            return self._collections.setdefault(collection, Collection())

    def load(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Bring the documents that exist among (collection, id), one look-up a collection."""
        ids: dict[str, dict[str, None]] = {}
        for collection, id in wanted:
            ids.setdefault(collection, {})[id] = None
        for collection, keys in ids.items():
            found = self._store.load(named(collection, self._generation), keys)
            self[collection].loaded(found)

    def writes(self) -> Writes:
        """All documents of the batch: inserts where they are new, which is far cheaper.

        A shared document is raised to its next revision.
        """
        writes = Writes()
        for name, collection in self._collections.items():
            there = named(name, self._generation)
            new, old = collection.split()
            for document in old:
                if "rev" in document:
                    document["rev"] += 1
            for kind, documents in ((writes.inserts, new), (writes.replaces, old)):
                if documents:
                    kind[there] = documents
            if collection.removed:
                writes.deletes[there] = list(collection.removed)
        return writes
