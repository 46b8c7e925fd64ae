"""Subscriptions: first the answer, then its updates, with no gap at the seam.

::

    with closing(Subscription(store, watched, lambda: queries.order("o1"))) as updates:
        while True:
            if (update := updates.poll(1.0)) is not None:
                print(update.number, update.answer)

The changes are followed from before the first read, so nothing falls between the two. A change says
only *that* something is different: the answer itself is always read anew, as any query is. So
whatever was missed (the server forgot, a view was built anew), the way on is the same: ask again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct

from labkit.messages import encode_value
from labkit.ports.store import Changes, Noticed, Store, Watched
from labkit.read.freshness import EVENTUAL, Fresh
from labkit.read.sessions import Session
from labkit.services.conditions import plan

T = TypeVar("T")


class Update(Struct, Generic[T], frozen=True):
    """An answer; the first one has the number 1."""

    number: int
    answer: T


class Subscription(Generic[T]):
    """One answer, followed as it changes; belongs to one thread.

    ``watched`` names what the answer is read from (``of_views`` helps), and ``ask`` reads it.
    Given are answers that differ from the one before. Each is read after the one before it, from
    the primary, so none is older; where members of a replica set may take over, ask through a
    ``Session``, which waits until the view has come as far as it was.
    """

    def __init__(
        self,
        store: Store,
        watched: Watched,
        ask: Callable[[], T],
        pump: Callable[[], None] = lambda: None,
    ) -> None:
        self._ask = ask
        self._pump = pump
        self._number = 0
        self._given = b""
        self._due = True
        self._changes: Changes = store.changes(watched)  # before the first read

    def poll(self, timeout: float = 0.0) -> Update[T] | None:
        """The next answer that differs, waiting up to ``timeout`` seconds for it.

        Raises what ``ask`` raises; the answer is then still due.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._pump()
            if not self._due:
                self._due = bool(self._changes.poll(max(0.0, deadline - time.monotonic())))
            if self._due and (update := self._read()) is not None:
                return update
            if time.monotonic() >= deadline:
                return None

    def _read(self) -> Update[T] | None:
        answer = self._ask()
        self._due = False
        seen = encode_value(answer)  # his to change, so that is kept
        if self._number and seen == self._given:
            return None
        self._number += 1
        self._given = seen
        return Update(self._number, answer)

    def close(self) -> None:
        """Stop following."""
        self._changes.close()


def follow(
    store: Store,
    session: Session,
    name: str,
    fresh: Fresh,
    params: Mapping[str, Any],
    pump: Callable[[], None],
) -> Subscription[Any]:
    """A query of ``conditions.py``; ``fresh`` holds for the first answer, which all others follow.

    Raises ``UsageError`` for conditions that nobody knows.
    """
    made = plan(name, params)

    def ask() -> Any:
        nonlocal fresh
        answer = made.ask(session, fresh)
        fresh = EVENTUAL
        return answer

    return Subscription(store, of_views(made.watched), ask, pump)


def of_views(watched: Watched) -> Watched:
    """Collections of views, and the pointers that say which generation of them serves."""
    pointers: dict[str, set[str]] = {}
    for name in watched:
        service, view, *_ = name.split(".")
        pointers.setdefault(f"{service}.checkpoints", set()).add(f"{service}.{view}")
    return {**watched, **pointers}


def touches(noticed: Noticed, watched: Watched) -> bool:
    """Whether an answer that is read from ``watched`` may be another now."""
    return noticed.lost or any(
        change.collection in watched and _among(change.id, watched[change.collection])
        for change in noticed.changes
    )


def _among(id: str, ids: Iterable[str] | None) -> bool:
    return ids is None or not id or id in ids
