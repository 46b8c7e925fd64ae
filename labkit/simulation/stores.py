"""The twin of MongoDB, where each effect is a place of the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from labkit.adapters.memory_changes import MemoryChanges
from labkit.adapters.memory_store import MemoryStore
from labkit.ports.store import Checkpoint, Document, Noticed, Reads, Watched, Writes
from labkit.simulation import tell
from labkit.simulation.world import World

#: The place before a transaction is committed.
ADVANCE = "advance"
#: What is written with write concern 1 is on the other servers after so long.
REPLICATED_SECONDS = 0.5


class SimulatedChanges(MemoryChanges):
    """Changes that a life waits for; it hears of them when the majority has them."""

    def __init__(self, store: SimulatedStore, watched: Watched) -> None:
        super().__init__(watched, store._listeners)
        self._store = store

    def poll(self, timeout: float) -> Noticed:
        self._store._world.place("changes")
        self._store._replicate()
        if not self._heard and not self._lost:
            self._store._world.wait(("store",), timeout)
            self._store._replicate()
        return super().poll(0)


class SimulatedStore(MemoryStore):
    """A store in memory, in a world. It writes with write concern ``majority``, and reads what the
    majority has."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        #: What an election would undo: when it was written, and all as it stood before.
        self._undoable: list[tuple[int, MemoryStore]] = []
        #: What the majority has not yet, and no listener hears of: when it was written, and what.
        self._untold: list[tuple[int, str, list[str]]] = []

    def weak(self) -> SimulatedStore:
        """The same store, for one who writes with write concern 1 and reads what that server has:
        see ``adapters.mongo.MongoStore``."""
        return _WeakStore(self)

    def elect(self) -> None:
        """Another server leads. What only the one before had is undone."""
        self._replicate()
        if self._undoable:
            self._world.note("aborted", f"an election undoes {len(self._undoable)} transactions")
            _, before = self._undoable[0]
            for mine, was in (
                (self._collections, before._collections),
                (self._checkpoints, before._checkpoints),
            ):
                mine.clear()
                mine.update(was)  # type: ignore[arg-type]
            self._undoable.clear()
            self._untold.clear()
            self._world.wake("store")

    def _replicate(self, age: float = REPLICATED_SECONDS) -> None:
        """The majority has what was written so many seconds ago."""
        until = self._world.time - int(age * 1e9)
        self._undoable[:] = [(at, before) for at, before in self._undoable if at > until]
        for _, collection, ids in [told for told in self._untold if told[0] <= until]:
            MemoryStore._tell(self, collection, ids)
        self._untold[:] = [told for told in self._untold if told[0] > until]

    def _of_majority(self) -> MemoryStore:
        self._replicate()
        return self._undoable[0][1] if self._undoable else self

    def _seen(self) -> MemoryStore:
        """What a read sees."""
        return self._of_majority()

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        self._world.place(f"claim {id}")
        found = super().claim(checkpoints, id)
        self._replicate(0)
        tell.claimed(self._world, found)
        return found

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        self._world.place(ADVANCE)
        stored = {old.id: at for old, _ in moves if (at := self._stored(checkpoints, old.id))}
        self._advance(checkpoints, moves, writes)
        self._world.monitors.advanced(stored, moves)
        tell.written(self._world, writes)
        self._world.wake("store")
        self._world.done(ADVANCE)

    def _stored(self, checkpoints: str, id: str) -> Checkpoint | None:
        return self._checkpoints.get(checkpoints, {}).get(id)

    def _advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        """What the majority has taken, it has taken with all that was written before."""
        super().advance(checkpoints, moves, writes)
        self._replicate(0)

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        self._world.place(f"checkpoints {checkpoints}")
        return MemoryStore.checkpoints(self._seen(), checkpoints)

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        self._world.place(f"load {collection}")
        return MemoryStore.load(self._seen(), collection, ids)

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
        self._world.place(f"find {collection}")
        seen = self._seen()
        return MemoryStore.find(seen, collection, where, sort, limit, at_most, fields, after)

    def count(self, collection: str) -> int:
        return MemoryStore.count(self._seen(), collection)

    def snapshot(self) -> AbstractContextManager[Reads]:
        self._world.place("snapshot")
        return MemoryStore.snapshot(self._of_majority())

    def changes(self, watched: Watched, pause: float = 0.05) -> SimulatedChanges:
        listener = SimulatedChanges(self, watched)
        self._listeners.append(listener)
        return listener


class _WeakStore(SimulatedStore):
    """A handle on the same store."""

    def __init__(self, of: SimulatedStore) -> None:
        super().__init__(of._world)
        self._collections, self._checkpoints = of._collections, of._checkpoints
        self._listeners, self._undoable = of._listeners, of._undoable
        self._untold = of._untold

    def _seen(self) -> MemoryStore:
        return self

    def _advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        before = self.copied()
        MemoryStore.advance(self, checkpoints, moves, writes)
        self._replicate()
        self._undoable.append((self._world.time, before))

    def _tell(self, collection: str, ids: Iterable[str]) -> None:
        self._untold.append((self._world.time, collection, list(ids)))
