"""CQRS without event sourcing: the rows of ``crud``, and a view that a change stream feeds.

Reads and writes are apart: each can have its own shape, indexes and servers, and a read can be
stale. There is no log: the change stream tells that a row changed, not why. A feeder that starts,
or whose place in the change stream the server has forgotten, copies all rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from labkit.experiments.cost.crud import CHECKPOINTS, Crud
from labkit.experiments.cost.row import ROWS, document
from labkit.messages import Document
from labkit.ports.store import Store, Writes

FED = "crud.view"
#: Documents in one transaction of the feeder, at most.
BATCH = 1_000


class FedView(Crud):
    """Writes rows, reads the view."""

    def read(self, stream: str) -> Document | None:
        return self._store.load(FED, [stream]).get(stream)

    def documents(self) -> list[Document]:
        return self._store.find(FED, {})


class Feeder:
    """The only writer of the view."""

    def __init__(self, store: Store) -> None:
        self._store = store
        for name in (ROWS, FED):
            store.index(name, [("_id", 1)])
        self._changes = store.changes({ROWS: None}, pause=0.002)
        self._copy(row["_id"] for row in store.find(ROWS, {}, fields=["_id"]))

    def step(self, timeout: float) -> int:
        """Copy what has changed, waiting up to ``timeout`` seconds; how many documents."""
        noticed = self._changes.poll(timeout)
        if noticed.lost:
            return self._copy(row["_id"] for row in self._store.find(ROWS, {}, fields=["_id"]))
        return self._copy(change.id for change in noticed.changes)

    def _copy(self, streams: Iterable[str]) -> int:
        every = sorted(streams)
        for start in range(0, len(every), BATCH):
            some = every[start : start + BATCH]
            rows = self._store.load(ROWS, some)
            known = self._store.load(FED, some)
            newer = [
                document(row)
                for stream, row in rows.items()
                if row["version"] > known.get(stream, {"version": 0})["version"]
            ]
            inserts = {FED: [d for d in newer if d["_id"] not in known]}
            replaces = {FED: [d for d in newer if d["_id"] in known]}
            if newer:
                self._store.advance(CHECKPOINTS, [], Writes(inserts, replaces))
        return len(every)

    def close(self) -> None:
        self._changes.close()
