"""Projections: what a commit does to documents.

A service's views are one projection: they are written in one transaction, and have one checkpoint
for each partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Protocol

from labkit.messages import Commit, Document
from labkit.read.unit_of_work import UnitOfWork
from labkit.service import At, KeyedView, Service, View
from labkit.service.guard import guarded

#: Collection -> its indexes, each a list of (field, direction).
Indexes = dict[str, list[list[tuple[str, int]]]]


#: Of the collection of parked streams.
PARKED_INDEX = [("partition", 1)]


def parked_in(projection: str) -> str:
    """The collection of the streams that a projection has parked."""
    return f"{projection}.parked"


class Projection(Protocol):
    """Pure: what a commit does to documents. ``streams`` names the collection that holds, under
    the stream's id, at least the stream's ``version``."""

    name: str
    streams: str

    @property
    def indexes(self) -> Indexes:
        """What its collections need."""

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        """The (collection, id) that ``apply`` will ask for, besides the stream's own document."""

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        """Change the documents. The projector has checked the version and will note the new one."""


class Dispatch(Protocol):
    """Where a projection leaves commands in the transaction of its batch, to be sent after it."""

    collection: str

    def send(self, letters: list[Document]) -> None:
        """Send them, wait until they are acknowledged, delete them. Twice does no harm."""

    def leftovers(self, partition: int) -> list[Document]:
        """What a dead owner of a partition left behind."""


class ServiceProjection:
    """The views of a service.

    Its first view that keeps a document for each stream holds the streams' versions; if there is
    none, a collection of its own does (``NAME.view.seen``).
    """

    def __init__(self, service: Service) -> None:
        self.name = service.view
        self.streams = streams_of(service)
        by_stream = [view for view in service.views if not isinstance(view, KeyedView)]
        applied = [
            (service.collection(v), guarded(_late(v, "apply"), None, service.any_event))
            for v in by_stream
        ]
        self._first = applied[0][1] if applied else None
        self._others = applied[1:]
        keyed = [view for view in service.views if isinstance(view, KeyedView)]
        self._keyed = [
            (service.collection(v), guarded(_late(v, "change"), None, service.any_event))
            for v in keyed
        ]
        self._looked_up = [
            (service.collection(v), guarded(_late(v, "keys", list), service.any_event))
            for v in keyed
            if type(v).keys is not KeyedView.keys
        ]
        self.indexes: Indexes = {service.collection(v): _indexes(v) for v in service.views}
        self.indexes.setdefault(self.streams, [])

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        for version, event in enumerate(commit.events, commit.first):
            at = At(commit.stream, version, partition)
            for collection, keys in self._looked_up:
                for id in keys(event, at):
                    yield collection, id
        if commit.first > 1:
            for collection, _ in self._others:
                yield collection, commit.stream

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        document = docs.get(self.streams, commit.stream)
        for version, event in enumerate(commit.events, commit.first):
            if self._first is not None:
                document = _fold(self._first, self.streams, commit.stream, event, docs)
            for collection, apply in self._others:
                _fold(apply, collection, commit.stream, event, docs)
            if self._keyed:
                at = At(commit.stream, version, commit.partition, document)
                for collection, change in self._keyed:
                    change(_Documents(docs, collection), event, at)
        if document is None:
            docs.add(self.streams, {"_id": commit.stream, "version": 0})
        elif self._first is not None:
            document["trace"] = {
                "id": commit.id,
                "partition": commit.partition,
                "command": commit.offset,
                "intended": commit.intended,
                "sent": commit.sent,
                "polled": commit.polled,
                "decided": commit.decided,
                "fetched": fetched,
                "applied": now,
            }


def streams_of(service: Service) -> str:
    """The collection that holds the version of each stream."""
    first = next((view for view in service.views if not isinstance(view, KeyedView)), None)
    return service.collection(first) if first is not None else f"{service.view}.seen"


class _Documents:
    """The documents of one view, in a unit of work."""

    def __init__(self, docs: UnitOfWork, collection: str) -> None:
        self._docs = docs
        self._collection = collection

    def get(self, id: str) -> Document | None:
        return self._docs.get(self._collection, id)

    def add(self, document: Document) -> Document:
        return self._docs.add(self._collection, document)

    def remove(self, id: str) -> None:
        self._docs.remove(self._collection, id)


def _fold(
    apply: Callable[[Any, Any], Document],
    collection: str,
    stream: str,
    event: Any,
    docs: UnitOfWork,
) -> Document:
    before = docs.get(collection, stream)
    after = apply(before, event)
    if after is before and before is not None:
        return before
    if not isinstance(after, dict):
        raise TypeError(f"{apply.__qualname__} must give a document, got {after!r:.100}")
    version = before["version"] if before else 0
    return docs.add(collection, {**after, "_id": stream, "version": version})


def _late(view: View, method: str, whole: Callable[[Any], Any] = lambda made: made) -> Any:
    """A method of a view as it is when it is called: in a notebook it may be mended meanwhile.

    ``whole`` makes of its answer what it is at its end, if that is to be waited for.
    """

    @wraps(getattr(view, method))
    def call(*given: Any) -> Any:
        return whole(getattr(view, method)(*given))

    return call


def _indexes(view: View) -> list[list[tuple[str, int]]]:
    return [
        [(field.lstrip("-"), -1 if field.startswith("-") else 1) for field in index]
        for index in view.indexes
    ]
