"""The state of the in-memory broker: topics, transactions and consumer groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct, field

from labkit.adapters.kafka import partition_of
from labkit.adapters.sticky import assign
from labkit.errors import Fenced, Unreachable
from labkit.ports.broker import Record

TransactionState = Literal["open", "committed", "aborted"]


class Slot(Struct):
    """One offset of a partition: a record, or None for the marker that ended a transaction."""

    record: Record | None
    transaction: OpenTransaction | None = None


class OpenTransaction(Struct, eq=False):
    """A transaction: the (topic, partition) pairs that it wrote to, and the offsets in it."""

    state: TransactionState = "open"
    wrote: set[tuple[str, int]] = field(default_factory=set)
    offsets: dict[int, int] = field(default_factory=dict)
    group: Group | None = None


class Group(Struct):
    """A consumer group on one topic.

    Each change of members raises ``generation``; ``since`` is the generation in which a partition
    got its owner; ``pending`` are the open transactions that hold offsets of it (KIP-447).
    """

    generation: int = 0
    members: list[int] = field(default_factory=list)
    owners: dict[int, int] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    pending: list[OpenTransaction] = field(default_factory=list)


class MemoryTopics:
    """All topics, transactions and groups of one in-memory broker."""

    def __init__(self) -> None:
        self._topics: dict[str, list[list[Slot]]] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, OpenTransaction] = {}
        self._members = 0

    # --- topics

    def create(self, topics: Mapping[str, int]) -> None:
        for topic, partitions in topics.items():
            self._topics.setdefault(topic, [[] for _ in range(partitions)])

    def drop(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._topics.pop(topic, None)

    def topics(self) -> list[str]:
        return sorted(self._topics)

    def partitions(self, topic: str) -> list[list[Slot]]:
        """Raises ``Unreachable`` for an unknown topic, as a real client does."""
        try:
            return self._topics[topic]
        except KeyError:
            raise Unreachable(f"topic {topic!r} does not exist; create it first") from None

    def partition_for(self, topic: str, key: bytes) -> int:
        return partition_of(key, len(self.partitions(topic)))

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, within: OpenTransaction | None
    ) -> int:
        """Write one record, in a transaction or in none, and return its offset."""
        slots = self.partitions(topic)[partition]
        slots.append(Slot(Record(partition, len(slots), key, value), within))
        if within:
            within.wrote.add((topic, partition))
        return len(slots) - 1

    # --- transactions

    def initialise(self, transactional_id: str) -> int:
        """Take over a transactional id: abort its open transaction, fence older owners."""
        self.end(transactional_id, "aborted")
        self._epochs[transactional_id] = self._epochs.get(transactional_id, 0) + 1
        return self._epochs[transactional_id]

    def begin(self, transactional_id: str, epoch: int) -> OpenTransaction:
        """Open a transaction for the newest owner of a transactional id."""
        if self._epochs[transactional_id] != epoch:
            raise Fenced(f"transactional id {transactional_id!r} has a newer owner")
        if transactional_id in self._open:
            raise Fenced(f"transactional id {transactional_id!r}: its last one has not ended")
        transaction = self._open[transactional_id] = OpenTransaction()
        return transaction

    def hold(
        self,
        transactional_id: str,
        transaction: OpenTransaction,
        group: Group,
        offsets: Mapping[int, int],
    ) -> None:
        """Put a group's offsets into a transaction; raises ``Fenced`` if it was aborted."""
        _check_open(transactional_id, transaction)
        transaction.group, transaction.offsets = group, dict(offsets)
        group.pending.append(transaction)

    def commit(self, transactional_id: str, transaction: OpenTransaction) -> None:
        """Commit a transaction; raises ``Fenced`` if it was aborted."""
        _check_open(transactional_id, transaction)
        self.end(transactional_id, "committed")

    def end(self, transactional_id: str, state: TransactionState) -> None:
        """Commit or abort: write a marker to each partition of the transaction."""
        transaction = self._open.pop(transactional_id, None)
        if transaction is None:
            return
        transaction.state = state
        if transaction.group is not None:
            if state == "committed":
                transaction.group.offsets.update(transaction.offsets)
            transaction.group.pending = [t for t in transaction.group.pending if t.state == "open"]
        for topic, partition in sorted(transaction.wrote):
            if topic in self._topics:
                self._topics[topic][partition].append(Slot(None))

    def expire(self) -> None:
        """Abort the open transactions of dead owners, as Kafka does after a timeout.

        There is no time in memory, so tests call this.
        """
        for transactional_id in list(self._open):
            self.end(transactional_id, "aborted")
            self._epochs[transactional_id] += 1

    # --- consumer groups

    def group(self, topic: str, group: str) -> Group:
        return self._groups[topic, group]

    def join(self, topic: str, group: str) -> int:
        """Add a member, rebalance, and return the member's id."""
        self._members += 1
        found = self._groups.setdefault((topic, group), Group())
        found.members.append(self._members)
        self._rebalance(topic, found)
        return self._members

    def leave(self, topic: str, group: str, member: int) -> None:
        found = self._groups[topic, group]
        if member in found.members:
            found.members.remove(member)
            if topic in self._topics:
                self._rebalance(topic, found)

    def _rebalance(self, topic: str, group: Group) -> None:
        group.generation += 1
        before = group.owners
        group.owners = assign(len(self.partitions(topic)), before, group.members)
        for partition, member in group.owners.items():
            if before.get(partition) != member:
                group.since[partition] = group.generation


def _check_open(transactional_id: str, transaction: OpenTransaction) -> None:
    if transaction.state != "open":
        raise Fenced(f"transactional id {transactional_id!r}: its transaction was aborted")
