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
    """Changes that a life waits for."""

    def __init__(self, world: World, watched: Watched, listeners: list[MemoryChanges]) -> None:
        super().__init__(watched, listeners)
        self._world = world

    def poll(self, timeout: float) -> Noticed:
        self._world.place("changes")
        if not self._heard and not self._lost:
            self._world.wait(("store",), timeout)
        return super().poll(0)


class SimulatedStore(MemoryStore):
    """A store in memory, in a world. It writes with write concern ``majority``, and reads what the
    majority has."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        #: What an election would undo: when it was written, and all as it stood before.
        self._undoable: list[tuple[int, MemoryStore]] = []

    def weak(self) -> SimulatedStore:
        """The same store, for one who writes with write concern 1 and reads what that server has:
        see ``adapters.mongo.MongoStore``."""
        return _WeakStore(self)

    def elect(self) -> None:
        """Another server leads. What only the one before had is undone."""
        self._forget_replicated()
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
            for listener in self._listeners:
                listener.forget()
            self._world.wake("store")

    def _forget_replicated(self) -> None:
        since = self._world.time - int(REPLICATED_SECONDS * 1e9)
        self._undoable[:] = [(at, before) for at, before in self._undoable if at > since]

    def _seen(self) -> MemoryStore:
        """What a read sees."""
        self._forget_replicated()
        return self._undoable[0][1] if self._undoable else self

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        self._world.place(f"claim {id}")
        found = super().claim(checkpoints, id)
        self._undoable.clear()
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
        self._undoable.clear()

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

    def snapshot(self) -> AbstractContextManager[Reads]:
        self._world.place("snapshot")
        return MemoryStore.snapshot(self._seen())

    def changes(self, watched: Watched, pause: float = 0.05) -> SimulatedChanges:
        listener = SimulatedChanges(self._world, watched, self._listeners)
        self._listeners.append(listener)
        return listener


class _WeakStore(SimulatedStore):
    """A handle on the same store."""

    def __init__(self, of: SimulatedStore) -> None:
        super().__init__(of._world)
        self._collections, self._checkpoints = of._collections, of._checkpoints
        self._listeners, self._undoable = of._listeners, of._undoable

    def _seen(self) -> MemoryStore:
        return self

    def _advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        before = self.copied()
        MemoryStore.advance(self, checkpoints, moves, writes)
        self._forget_replicated()
        self._undoable.append((self._world.time, before))
