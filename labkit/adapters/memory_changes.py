"""The changes of an in-memory store, for one listener."""

from __future__ import annotations

import time
from collections.abc import Iterable

from labkit.ports.store import Change, Noticed, Watched

#: A listener drops its changes when more than this are pending, and reports them as lost.
MOST_CHANGES = 10_000
#: An empty poll waits at most this long, so that other threads can write.
IDLE_SECONDS = 0.005


class MemoryChanges:
    """The pending changes of one listener."""

    def __init__(self, watched: Watched, listeners: list[MemoryChanges]) -> None:
        self._watched = watched
        self._listeners = listeners
        self._heard: set[Change] = set()
        self._lost = False

    def hear(self, collection: str, ids: Iterable[str]) -> None:
        name = collection.partition("@")[0]
        if name not in self._watched:
            return
        wanted = self._watched[name]
        self._heard |= {Change(name, id) for id in ids if wanted is None or not id or id in wanted}
        if len(self._heard) > MOST_CHANGES:
            self.forget()

    def forget(self) -> None:
        """Lose the pending changes, as a server does that has dropped old log entries."""
        self._heard, self._lost = set(), True

    def poll(self, timeout: float) -> Noticed:
        if not self._heard and not self._lost:
            time.sleep(min(timeout, IDLE_SECONDS))
        found = Noticed(frozenset(self._heard), self._lost)
        self._heard, self._lost = set(), False
        return found

    def close(self) -> None:
        if self in self._listeners:
            self._listeners.remove(self)
