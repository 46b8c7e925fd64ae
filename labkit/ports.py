"""What the core asks of the outside world: a broker, a store, a clock.

Adapters keep these promises for kafka-python, confluent-kafka, MongoDB and for their in-memory
twins; the contract suites in ``tests/contracts`` hold them all to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, get_args

import msgspec
from msgspec import Struct

Document = dict[str, Any]

#: What a handler promises about a command that it meets in a crash.
Delivery = Literal["at_most_once", "at_least_once", "exactly_once"]
DELIVERIES: tuple[Delivery, ...] = get_args(Delivery)

#: A poll ends with the record whose value brings it to this size, whatever its limit: a batch is
#: one transaction, and one of a gigabyte would be undone at its time-out, over and over again.
MAX_BATCH_BYTES = 16 << 20


class Record(Struct, gc=False):
    """One record of a topic."""

    partition: int
    offset: int
    key: bytes
    value: bytes


class Batch(Struct):
    """What one ``poll`` brought.

    ``positions`` holds, for each partition that moved, the offset of the next record to be read;
    it passes transaction markers and aborted records. ``assigned`` and ``revoked`` are the changes
    of ownership since the last poll: an assigned partition yields nothing before ``start``.
    ``fence`` is the group's generation at the poll, in the adapter's own form: whoever commits
    this batch later, commits under it.
    """

    records: list[Record] = msgspec.field(default_factory=list)
    positions: dict[int, int] = msgspec.field(default_factory=dict)
    assigned: frozenset[int] = frozenset()
    revoked: frozenset[int] = frozenset()
    fence: Any = None


class Source(Protocol):
    """A reader of one topic that sees committed records only; belongs to one thread."""

    def poll(self, limit: int, timeout: float) -> Batch:
        """At most ``limit`` records, waiting up to ``timeout`` seconds for the first.

        No more come once their values have ``MAX_BATCH_BYTES``.
        """

    def start(self, partition: int, offset: int | None = None) -> None:
        """Begin to read an assigned partition; ``None``: where the group has committed."""

    def stop(self, partition: int) -> None:
        """Yield nothing more of a partition until it is started again."""

    def ends(self) -> dict[int, int]:
        """The high watermark of every partition of the topic, open transactions included."""

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        """Where a record of each key goes (murmur2, as in Kafka's Java client)."""

    def close(self) -> None:
        """Leave the group; bounded in time; may be called twice."""


class CommandLog(Source, Protocol):
    """The handler's log: commands come in, commits and the commands' offsets go out as one."""

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """Write ``commits`` (key, value, partition) and the batch's offsets in one transaction.

        A partition with commits and no record in the batch (a command that was scheduled) commits
        the offset where it stands, so that the fence holds for it too. Returns the next offset
        after the commits, by events partition. Raises ``Fenced`` where another owner took over and
        ``OutcomeUnknown`` where the commit was not answered.
        """

    def commands(self) -> Source:
        """A reader of the commands topic that is in no group."""

    def events(self) -> Source:
        """A reader of the events topic that is in no group."""


class Acknowledgement(Protocol):
    """The future of a send."""

    def result(self, timeout: float) -> tuple[int, int]:
        """Partition and offset, once the broker has acknowledged; raises ``Unreachable``."""


class Sender(Protocol):
    """Sends commands, acknowledged by all replicas."""

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> Acknowledgement:
        """Queue one record; ``None``: for the partition that its key belongs to."""

    def flush(self, timeout: float) -> None:
        """Wait until all that was queued is acknowledged; raises ``Unreachable``."""

    def close(self) -> None:
        """Bounded in time."""


class Broker(Protocol):
    """The way to a message broker."""

    def create(self, topics: Mapping[str, int]) -> None:
        """Create the topics (name to number of partitions) that are not there yet."""

    def drop(self, topics: Iterable[str]) -> None:
        """Delete topics; unknown names are fine."""

    def topics(self) -> list[str]:
        """The names of all topics that are not internal."""

    def sender(self) -> Sender:
        """A new sender."""

    def source(self, topic: str, group: str | None = None, *, uncommitted: bool = False) -> Source:
        """A member of ``group``, or a reader of all partitions from their start.

        ``uncommitted``: with what open and aborted transactions wrote; for looking, nothing else.
        """

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> CommandLog:
        """A handler's log; ``transactional_id`` is never shared by two live owners.

        ``delivery`` is the order of steps inside ``commit``: the offsets first
        (``at_most_once``), the commits first (``at_least_once``), or both as one.
        """

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        """The offsets that a group has committed, by partition.

        Kafka writes those of a transaction a moment after it said that it is committed. Until then
        the ones before are told; ``settled`` waits (KIP-447).
        """

    def version(self) -> str:
        """The server's version, as far as it tells."""

    def close(self) -> None:
        """Let go of connections."""


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


class Clock(Protocol):
    """Instants for measuring and for schedules; nothing is ever ordered by them."""

    def now(self) -> int:
        """Monotonic nanoseconds, comparable within one host."""

    def wall(self) -> int:
        """Unix milliseconds: what a calendar says."""


class SystemClock:
    """The host's clocks."""

    def now(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def wall(self) -> int:
        """Unix milliseconds."""
        return time.time_ns() // 1_000_000
