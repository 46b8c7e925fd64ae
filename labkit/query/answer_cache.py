"""Answers that a query handler holds, until a change of what they were read from.

A cache saves reads and risks staleness: until the change stream has brought a write, an answer is
older than the view. ``labkit bench cache`` measures both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from labkit.ports.store import Noticed
from labkit.read.view_reads import Place
from labkit.service import Query


class CachedAnswer(Struct):
    """An answer, and the places that it was read from."""

    answer: msgspec.Raw
    places: frozenset[Place]


class AnswerCache:
    """At most ``size`` answers, those that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._readers: dict[Place, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, query: Query) -> CachedAnswer | None:
        """What is held; ``None``: it must be read."""
        key = _key(query)
        if (held := self._held.get(key)) is not None:
            self._held.move_to_end(key)
        return held

    def put(self, query: Query, answer: msgspec.Raw, places: frozenset[Place]) -> None:
        """Hold an answer that was read after the changes that were noticed last."""
        key = _key(query)
        self._drop([key])
        self._held[key] = CachedAnswer(answer, places)
        for place in places:
            self._readers.setdefault(place, set()).add(key)
        if len(self._held) > self._size:
            self._drop([next(iter(self._held))])

    def notice(self, noticed: Noticed) -> None:
        """Drop what may be different now; with a pointer of a view, all of it."""
        if noticed.lost or any(_is_pointer(change.collection) for change in noticed.changes):
            self._held.clear()
            self._readers.clear()
            return
        for change in noticed.changes:
            if change.id:
                self._drop(self._readers.get((change.collection, change.id), ()))
            else:
                gone = [place for place in self._readers if place[0] == change.collection]
                for place in gone:
                    self._drop(self._readers.get(place, ()))
            self._drop(self._readers.get((change.collection, None), ()))

    def _drop(self, keys: Iterable[bytes]) -> None:
        for key in list(keys):
            if (held := self._held.pop(key, None)) is None:
                continue
            for place in held.places:
                readers = self._readers[place]
                readers.discard(key)
                if not readers:
                    del self._readers[place]


def _is_pointer(collection: str) -> bool:
    return collection.endswith(".checkpoints")


def _key(query: Query) -> bytes:
    return msgspec.json.encode([type(query).__name__, query])
