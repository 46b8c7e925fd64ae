"""Projections: what a commit does to documents.

A service's views are one projection: they are written in one transaction, and have one checkpoint
for each partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Protocol

from labkit.messages import Commit, Document
from labkit.read.unit_of_work import Collection, UnitOfWork
from labkit.service import At, Documents, KeyedView, Service, View
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
        self._by_stream = [
            (service.collection(v), _guarded_apply(v, service.any_event))
            for v in service.views
            if not isinstance(v, KeyedView)
        ]
        keyed = [view for view in service.views if isinstance(view, KeyedView)]
        self._keyed = [
            (service.collection(v), _guarded_change(v, service.any_event)) for v in keyed
        ]
        self._looked_up = [
            (service.collection(v), _guarded_keys(v, service.any_event))
            for v in keyed
            if type(v).keys is not KeyedView.keys
        ]
        self.indexes: Indexes = {service.collection(v): _indexes(v) for v in service.views}
        self.indexes.setdefault(self.streams, [])

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        touched = [
            (collection, id)
            for collection, keys in self._looked_up
            for version, event in enumerate(commit.events, commit.first)
            for id in keys(event, At(commit.stream, version, partition))
        ]
        if commit.first > 1:
            touched += [(collection, commit.stream) for collection, _ in self._by_stream[1:]]
        return touched

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        stream = commit.stream
        streams = docs[self.streams]
        for version, event in enumerate(commit.events, commit.first):
            for collection, apply in self._by_stream:
                _fold(apply, stream, event, docs[collection])
            if self._keyed:
                document = streams.get(stream) if self._by_stream else None
                at = At(stream, version, commit.partition, document)
                for collection, change in self._keyed:
                    change(docs[collection], event, at)
        if (document := streams.get(stream)) is None:
            streams.add({"_id": stream, "version": 0})
        elif self._by_stream:
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
    first = service.first_view
    return service.collection(first) if first is not None else f"{service.view}.seen"


def _fold(
    apply: Callable[[Any, Any], Document], stream: str, event: Any, documents: Collection
) -> None:
    before = documents.get(stream)
    after = apply(before, event)
    if after is before and before is not None:
        return
    if not isinstance(after, dict):
        raise TypeError(f"{apply.__qualname__} must give a document, got {after!r:.100}")
    version = before["version"] if before else 0
    documents.add({**after, "_id": stream, "version": version})


# A method of a view is looked up at each call: in a notebook it may be mended meanwhile.


def _guarded_apply(view: View, events: Any) -> Callable[[Document | None, Any], Document]:
    @wraps(view.apply)
    def apply(document: Document | None, event: Any) -> Document:
        return view.apply(document, event)

    return guarded(apply, None, events)


def _guarded_change(view: KeyedView, events: Any) -> Callable[[Documents, Any, At], None]:
    @wraps(view.change)
    def change(documents: Documents, event: Any, at: At) -> None:
        view.change(documents, event, at)

    return guarded(change, None, events)


def _guarded_keys(view: KeyedView, events: Any) -> Callable[[Any, At], list[str]]:
    @wraps(view.keys)
    def keys(event: Any, at: At) -> list[str]:
        return list(view.keys(event, at))

    return guarded(keys, events)


def _indexes(view: View) -> list[list[tuple[str, int]]]:
    return [
        [(field.lstrip("-"), -1 if field.startswith("-") else 1) for field in index]
        for index in view.indexes
    ]
