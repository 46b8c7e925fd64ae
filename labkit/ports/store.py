"""What the core asks of the outside world: a broker, a store, a clock.

Adapters keep these promises for kafka-python, confluent-kafka, MongoDB and for their in-memory
twins; the contract suites in ``tests/contracts`` hold them all to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from labkit.messages import Document as Document


class Checkpoint(Struct, frozen=True):
    """How far one reader has come in one partition, and in which epoch of ownership.

    ``position`` is the next offset to read, ``command`` the highest command offset applied,
    ``ignored`` the number of commits that came too late for their version, and ``parked`` the
    number of streams that the reader holds back.
    """

    id: str
    epoch: int
    position: int = 0
    command: int = -1
    ignored: int = 0
    parked: int = 0


class Writes(Struct):
    """Documents by collection; ``inserts`` must be new, ``replaces`` must exist.

    A document that several writers share carries ``rev``, which the writer has raised by one: it
    replaces only the revision before. ``deletes`` holds ids; those that are gone are fine.
    """

    inserts: dict[str, list[Document]] = msgspec.field(default_factory=dict)
    replaces: dict[str, list[Document]] = msgspec.field(default_factory=dict)
    deletes: dict[str, list[str]] = msgspec.field(default_factory=dict)


class Change(Struct, frozen=True):
    """A document that was written or taken out; without an id, any of its collection may be."""

    collection: str
    id: str = ""


class Noticed(Struct, frozen=True):
    """What one ``poll`` of changes brought, each of them once.

    ``lost``: some may have been missed, so whatever was read before must be read anew.
    """

    changes: frozenset[Change] = frozenset()
    lost: bool = False

    def __bool__(self) -> bool:
        return self.lost or bool(self.changes)


#: Collections, each with the ids that matter; ``None``: all of them.
Watched = Mapping[str, Collection[str] | None]


class Changes(Protocol):
    """Tells what was written since it was opened; belongs to one thread.

    Whoever opens it first and reads then misses nothing: what the read does not show, it tells. It
    may tell a little more: the newest change before it was opened.
    """

    def poll(self, timeout: float) -> Noticed:
        """What changed, waiting up to ``timeout`` seconds for the first."""

    def close(self) -> None:
        """Bounded in time."""


class Reads(Protocol):
    """What a store can be asked."""

    def checkpoints(self, checkpoints: str) -> list[Checkpoint]:
        """All checkpoints of a collection."""

    def load(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among ``ids``."""

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
        """Documents whose fields equal those of ``where`` and are not above those of ``at_most``.

        Directions of ``sort`` are 1 and -1; without ``limit`` all. With ``fields`` only these, and
        ``_id``. With ``after`` only what follows, in the order of ``sort``, on a document that has
        these values in the fields of ``sort``: where a page ended, the next one begins.
        """

    def totals(
        self,
        collection: str,
        by: str,
        fields: Sequence[str],
        sort: str = "",
        limit: int = 0,
        where: Document | None = None,
    ) -> list[Document]:
        """Sums of ``fields`` grouped by ``by`` (given back as ``_id``), the largest ``sort`` first;
        without ``sort`` in the order of ``_id``. Of those documents whose fields equal ``where``.

        An index of ``by`` and ``fields`` holds all that it reads.
        """

    def count(self, collection: str) -> int:
        """The number of documents."""


class Store(Reads, Protocol):
    """Documents and checkpoints; ids are in ``_id``."""

    def claim(self, checkpoints: str, id: str) -> Checkpoint:
        """Take ownership: raise the epoch by one and return the checkpoint as it stands."""

    def advance(
        self, checkpoints: str, moves: Sequence[tuple[Checkpoint, Checkpoint]], writes: Writes
    ) -> None:
        """Writes and checkpoint moves (from, to) in one transaction.

        Raises ``Fenced`` if a checkpoint is not as ``from`` says (epoch and position),
        ``Duplicate`` if an insert is not new, and ``Conflict`` if a shared document has another
        revision; nothing is written then.
        """

    def snapshot(self) -> AbstractContextManager[Reads]:
        """Reads that all see one instant, and nothing that could still be undone.

        Raises ``Conflict`` where a collection was made or changed just then: ask again.
        """

    def index(
        self, collection: str, keys: Sequence[tuple[str, int]], *, sparse: bool = False
    ) -> None:
        """Make sure of an index; also creates the collection.

        ``sparse``: of the documents that have the field, which costs the others nothing.
        """

    def discard(self, collections: Iterable[str]) -> None:
        """Drop collections; unknown names are fine."""

    def changes(self, watched: Watched, pause: float = 0.05) -> Changes:
        """From now on, what changes in these collections and in their generations (``name@1``).

        Generations are told by the plain name. A burst is told at once: it ends with the first
        pause of so many seconds.
        """

    def collections(self) -> list[str]:
        """The names of the collections."""

    def version(self) -> str:
        """The server's version."""

    def drop(self) -> None:
        """Delete everything."""

    def close(self) -> None:
        """Let go of connections."""
