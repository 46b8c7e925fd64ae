"""Answers that a query handler holds, until a change of what they were read from.

A cache saves reads and risks staleness: until the change stream has brought a write, an answer is
older than the view. ``labkit bench cache`` measures both.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from labkit.ports.store import Noticed
from labkit.query.readers import Readers
from labkit.read.view_reads import Place
from labkit.service import Query


class AnswerCache:
    """At most ``size`` answers, those that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[bytes, msgspec.Raw] = OrderedDict()
        self._readers: Readers[bytes] = Readers()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, query: Query) -> msgspec.Raw | None:
        """What is held; ``None``: it must be read."""
        key = key_of(query)
        if (held := self._held.get(key)) is not None:
            self._held.move_to_end(key)
        return held

    def put(self, query: Query, answer: msgspec.Raw, places: frozenset[Place]) -> None:
        """Hold an answer that was read after the changes that were noticed last."""
        key = key_of(query)
        self._held[key] = answer
        self._held.move_to_end(key)
        self._readers.put(key, places)
        if len(self._held) > self._size:
            self._drop(next(iter(self._held)))

    def notice(self, noticed: Noticed) -> None:
        """Drop what may be different now."""
        for key in self._readers.concerned(noticed):
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        del self._held[key]
        self._readers.drop(key)


def key_of(query: Query) -> bytes:
    """The same for equal queries."""
    return msgspec.json.encode([type(query).__name__, query])
