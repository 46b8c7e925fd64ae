"""Generations: a view that is built anew, in collections of its own, while the old one serves.

::

    orders.view.orders     orders.view:0     the first generation: its collections, its checkpoints
    orders.view.orders@1   orders.view@1:0   the next one, beside it
    orders.checkpoints     orders.view       the *pointer*: its ``position`` is what serves

The pointer is a checkpoint like any other, so what moves it is one transaction of the store, and
its epoch tells two who build at once apart. Whoever reads takes pointer, checkpoints and documents
from one instant (``Store.snapshot``): never the pointer of one generation and the data of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.ports.store import Checkpoint, Document, Reads


def named(name: str, generation: int) -> str:
    """The name of a collection, or of a reader, in a generation."""
    return f"{name}@{generation}" if generation else name


def serving(checkpoints: Iterable[Checkpoint], view: str) -> int:
    """The generation that serves."""
    return next((c.position for c in checkpoints if c.id == view), 0)


def of_reader(checkpoints: Iterable[Checkpoint], name: str) -> dict[int, Checkpoint]:
    """The checkpoints of one reader, by partition."""
    found = ((c.id.rpartition(":"), c) for c in checkpoints)
    return {int(partition): c for (reader, _, partition), c in found if reader == name}


class Serving:
    """Reads of views by the plain names of their collections, from the generations that serve.

    A view is named by the first two parts of its collections, its service by the first.
    """

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._known: dict[str, list[Checkpoint]] = {}

    def _all(self, service: str) -> list[Checkpoint]:
        if service not in self._known:
            self._known[service] = self._reads.checkpoints(f"{service}.checkpoints")
        return self._known[service]

    def collection(self, name: str) -> str:
        """Where a collection of a view is, in the generation that serves."""
        service, view, *_ = name.split(".")
        return named(name, serving(self._all(service), f"{service}.{view}"))

    def checkpoints(self, view: str) -> dict[int, Checkpoint]:
        """By partition, how far a view is."""
        known = self._all(view.partition(".")[0])
        return of_reader(known, named(view, serving(known, view)))

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among ``ids``."""
        return self._reads.load(self.collection(collection), ids)

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
        """As ``Reads.find``."""
        at = self.collection(collection)
        return self._reads.find(at, where, sort, limit, at_most, fields, after)

    def totals(
        self,
        collection: str,
        by: str,
        fields: Sequence[str],
        sort: str = "",
        limit: int = 0,
        where: Document | None = None,
    ) -> list[Document]:
        """As ``Reads.totals``."""
        return self._reads.totals(self.collection(collection), by, fields, sort, limit, where)

    def count(self, collection: str) -> int:
        """The number of documents."""
        return self._reads.count(self.collection(collection))
