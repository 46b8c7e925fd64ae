"""Subscriptions: first the answer, then its updates, with no gap at the seam.

::

    with closing(lab.subscribe(OrderById("o1"))) as updates:
        while True:
            if (update := updates.poll(1.0)) is not None:
                print(update.number, update.answer)

The changes are followed from before the first read, so nothing falls between the two. A change says
only *that* something is different: the answer itself is always read anew, as any query is. So
whatever was missed (the server forgot, a view was rebuilt), the way on is the same: ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from labkit.messages import encode
from labkit.ports.store import Changes, Store, Watched
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.queries import Queries
from labkit.read.view_reads import Place
from labkit.service import Query


class Update(Struct, frozen=True):
    """An answer; the first one has the number 1."""

    number: int
    answer: Any


class Subscription:
    """The answers to one query as they change; belongs to one thread.

    Given are answers that differ from the one before. Each is read after the one before it, from
    the primary, so none is older; if members of a replica set may take over, ask through a
    ``Session``, which waits until the view has come as far as it was. ``fresh`` holds for the first
    answer, which all others follow. Raises ``UsageError`` for conditions that cannot be.
    """

    def __init__(
        self,
        store: Store,
        queries: Queries,
        query: Query,
        fresh: Fresh = EVENTUAL,
        drive: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._queries = queries
        self._asked = queries.asked(query)
        self._clock = queries._clock
        self._fresh = fresh
        self._drive = drive
        self._number = 0
        self._given = b""
        self._due = True
        self._watched = dict(self._asked.watched)
        self._changes: Changes = store.changes(of_views(self._watched))  # before the first read

    def poll(self, timeout: float = 0.0) -> Update | None:
        """The next answer that differs, waiting up to ``timeout`` seconds for it.

        Raises what the query raises; the answer is then still due.
        """
        deadline = self._clock.seconds() + timeout
        while True:
            self._drive()
            if not self._due:
                self._due = bool(self._changes.poll(max(0.0, deadline - self._clock.seconds())))
            if self._due and (update := self._read()) is not None:
                return update
            if self._clock.seconds() >= deadline:
                return None

    def _read(self) -> Update | None:
        found = self._queries.answer(self._asked, self._fresh)
        self._fresh = EVENTUAL
        if unwatched := self._unwatched(found.places):
            self._changes.close()
            self._watched |= dict.fromkeys(unwatched)
            self._changes = self._store.changes(of_views(self._watched))
            return self._read()  # now that its changes are followed
        self._due = False
        seen = encode(found.value)  # the caller may change the value itself
        if self._number and seen == self._given:
            return None
        self._number += 1
        self._given = seen
        return Update(self._number, found.value)

    def _unwatched(self, places: Iterable[Place]) -> set[str]:
        """The collections that were read and are not followed, or not all of what was read."""
        return {
            collection
            for collection, id in places
            if collection not in self._watched
            or ((ids := self._watched[collection]) is not None and id not in ids)
        }

    def close(self) -> None:
        """Stop following."""
        self._changes.close()


def of_views(watched: Watched) -> Watched:
    """Collections of views, and the pointers that say which generation of them serves."""
    pointers: dict[str, set[str]] = {}
    for name in watched:
        service, view, *_ = name.split(".")
        pointers.setdefault(f"{service}.checkpoints", set()).add(f"{service}.{view}")
    return {**watched, **pointers}
