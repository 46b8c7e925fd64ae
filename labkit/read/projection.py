"""Projections: what a commit does to documents.

A service's views are one projection: they are written in one transaction, and have one checkpoint
for each partition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from labkit.messages import Commit, Document
from labkit.read.unit_of_work import Collection, UnitOfWork
from labkit.service import At, KeyedView, Service, View
from labkit.service.guard import changeable, given_back, guarded, lend

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
        """Change the documents. The projector has checked the version and will note the new one.

        ``fetched`` and ``now`` are monotonic nanoseconds; ``fetched`` is 0 where a view is built
        anew, which nobody sees yet.
        """


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
        keyed = [(service.collection(v), v) for v in service.views if isinstance(v, KeyedView)]
        self._keyed = keyed
        self._by_stream = [
            (service.collection(v), v) for v in service.views if not isinstance(v, KeyedView)
        ]
        self._looked_up = [(c, v) for c, v in keyed if type(v).keys is not KeyedView.keys]
        self._changeable = changeable(service.any_event)
        self._show = guarded(self._shown)
        self._touch = guarded(self._touched)
        self.indexes: Indexes = {service.collection(v): _indexes(v) for v in service.views}
        self.indexes.setdefault(self.streams, [])

    def touches(self, commit: Commit[Any], partition: int) -> Iterable[tuple[str, str]]:
        touched = self._touch(commit, partition) if self._looked_up else []
        if commit.first > 1:
            touched += [(collection, commit.stream) for collection, _ in self._by_stream[1:]]
        return touched

    def _touched(self, commit: Commit[Any], partition: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for version, event in enumerate(commit.events, commit.first):
            at = At(commit.stream, version, partition)
            kept = lend(event) if self._changeable else b""
            for collection, view in self._looked_up:
                # Each id once: a generator without an end takes no memory until it is stopped.
                found += [(collection, id) for id in dict.fromkeys(view.keys(event, at))]
                if kept:
                    given_back(event, kept, view.keys)
        return found

    def apply(self, commit: Commit[Any], docs: UnitOfWork, fetched: int, now: int) -> None:
        document = self._show(commit, docs)
        if document is None:
            seen = docs[self.streams]
            if seen.get(commit.stream) is None:
                seen.add({"_id": commit.stream, "version": 0})
        elif fetched:
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

    def _shown(self, commit: Commit[Any], docs: UnitOfWork) -> Document | None:
        """The stream's document in the first view that has one."""
        stream, document = commit.stream, None
        for version, event in enumerate(commit.events, commit.first):
            kept, document = lend(event) if self._changeable else b"", None
            for collection, view in self._by_stream:
                # A method is looked up at each call: in a notebook it may be mended meanwhile.
                after = _folded(view, stream, event, docs[collection])
                if kept:
                    given_back(event, kept, view.apply)
                if document is None:
                    document = after
            if self._keyed:
                at = At(stream, version, commit.partition, document)
                for collection, keyed in self._keyed:
                    keyed.change(docs[collection], event, at)
                    if kept:
                        given_back(event, kept, keyed.change)
        return document


def streams_of(service: Service) -> str:
    """The collection that holds the version of each stream."""
    first = service.first_view
    return service.collection(first) if first is not None else f"{service.view}.seen"


def _folded(view: View, stream: str, event: Any, documents: Collection) -> Document:
    """The stream's document in a view, after an event."""
    before = documents.get(stream)
    after = view.apply(before, event)
    if after is before and before is not None:
        return before
    if not isinstance(after, dict):
        raise TypeError(f"{view.apply.__qualname__} must give a document, got {after!r:.100}")
    version = before["version"] if before else 0
    return documents.add({**after, "_id": stream, "version": version})


def _indexes(view: View) -> list[list[tuple[str, int]]]:
    return [
        [(field.lstrip("-"), -1 if field.startswith("-") else 1) for field in index]
        for index in view.indexes
    ]
