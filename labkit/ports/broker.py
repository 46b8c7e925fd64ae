"""The broker as the core sees it: records, sources, senders and transactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec
from msgspec import Struct

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

    def start(self, partition: int, offset: int | None = None) -> int:
        """Begin to read an assigned partition, and return the offset.

        ``None``: where the group has committed. Raises ``Pending`` while a predecessor's offsets
        belong to a transaction that has not ended.
        """

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

    def settled(self) -> bool:
        """Whether the broker has acknowledged it, or it has failed; does not wait."""

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
