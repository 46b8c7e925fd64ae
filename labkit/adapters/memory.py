"""The in-memory twin of Kafka: same port, same promises, no server.

It keeps what matters to the core: transactions with markers that take offsets, the last stable
offset, consumer groups that hand partitions over, both fences. It runs in one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, field

from labkit.adapters.kafka import offsets_of, partition_of, spread
from labkit.errors import Fenced, Unreachable
from labkit.ports.broker import MAX_BATCH_BYTES, Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


class _Slot(Struct):
    """One offset of a partition: a record, or the marker that ended a transaction (no record)."""

    record: Record | None
    transaction: _Transaction | None = None


class _Transaction(Struct, eq=False):
    state: str = "open"  # open, committed, aborted
    wrote: set[tuple[str, int]] = field(default_factory=set)  # (topic, partition)


class _Group(Struct):
    """A consumer group on one topic. ``generation`` rises with every change of members; ``since``
    is the one in which a partition got its owner."""

    generation: int = 0
    members: list[int] = field(default_factory=list)
    owners: dict[int, int] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)


class MemoryBroker:
    """Topics in memory. Every object it gives out shares them."""

    def __init__(self) -> None:
        self._topics: dict[str, list[list[_Slot]]] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, _Transaction] = {}
        self._members = 0

    def create(self, topics: Mapping[str, int]) -> None:
        """Create the topics that are not there yet."""
        for topic, partitions in topics.items():
            self._topics.setdefault(topic, [[] for _ in range(partitions)])

    def drop(self, topics: Iterable[str]) -> None:
        """Delete topics."""
        for topic in topics:
            self._topics.pop(topic, None)

    def topics(self) -> list[str]:
        """The names of all topics."""
        return sorted(self._topics)

    def sender(self) -> MemorySender:
        """A new sender."""
        return MemorySender(self)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> MemorySource:
        """A member of ``group``, or a reader in none."""
        return MemorySource(self, topic, group, uncommitted)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> MemoryLog:
        """A handler's log."""
        return MemoryLog(self, commands, events, group, transactional_id, delivery)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        """The offsets that a group has committed."""
        found = self._groups.get((topic, group))
        return dict(found.offsets) if found else {}

    def version(self) -> str:
        """No server."""
        return "memory"

    def close(self) -> None:
        """Nothing to let go of: the topics live as long as this object."""

    # --- for the classes below

    def partitions(self, topic: str) -> list[list[_Slot]]:
        """The partitions of a topic; unknown: ``Unreachable``, as a real client would time out."""
        try:
            return self._topics[topic]
        except KeyError:
            raise Unreachable(f"topic {topic!r} does not exist; create it first") from None

    def partition_for(self, topic: str, key: bytes) -> int:
        """Kafka's default partitioner."""
        return partition_of(key, len(self.partitions(topic)))

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, within: _Transaction | None
    ) -> int:
        """Write one record; returns its offset."""
        slots = self.partitions(topic)[partition]
        slots.append(_Slot(Record(partition, len(slots), key, value), within))
        if within:
            within.wrote.add((topic, partition))
        return len(slots) - 1

    def begin(self, transactional_id: str, epoch: int) -> _Transaction:
        """Open a transaction for the newest holder of a transactional id."""
        if self._epochs[transactional_id] != epoch:
            raise Fenced(f"transactional id {transactional_id!r} has a newer owner")
        transaction = self._open[transactional_id] = _Transaction()
        return transaction

    def end(self, transactional_id: str, state: str) -> None:
        """Commit or abort: a marker in each partition that the transaction wrote to."""
        transaction = self._open.pop(transactional_id, None)
        if transaction is None:
            return
        transaction.state = state
        for topic, partition in sorted(transaction.wrote):
            if topic in self._topics:
                self._topics[topic][partition].append(_Slot(None))

    def expire(self) -> None:
        """What Kafka does after a transaction's time-out: abort those that dead owners left open.

        There is no time in memory, so whoever plays with owners that die for good says when.
        """
        for transactional_id in list(self._open):
            self.end(transactional_id, "aborted")
            self._epochs[transactional_id] += 1

    def initialise(self, transactional_id: str) -> int:
        """Take a transactional id over: its open transaction is aborted, older owners fenced."""
        self.end(transactional_id, "aborted")
        self._epochs[transactional_id] = self._epochs.get(transactional_id, 0) + 1
        return self._epochs[transactional_id]

    def join(self, topic: str, group: str) -> int:
        """A new member; the partitions are dealt out anew."""
        self._members += 1
        found = self._groups.setdefault((topic, group), _Group())
        found.members.append(self._members)
        self._deal(topic, found)
        return self._members

    def leave(self, topic: str, group: str, member: int) -> None:
        """A member goes."""
        found = self._groups[topic, group]
        if member in found.members:
            found.members.remove(member)
            if topic in self._topics:
                self._deal(topic, found)

    def group(self, topic: str, group: str) -> _Group:
        """The group, as it stands."""
        return self._groups[topic, group]

    def _deal(self, topic: str, group: _Group) -> None:
        """Sticky: nobody loses a partition who need not."""
        group.generation += 1
        partitions = range(len(self.partitions(topic)))
        before = group.owners
        if not group.members:
            group.owners = {}
            return
        fair = -(-len(partitions) // len(group.members))
        owned: dict[int, list[int]] = {member: [] for member in group.members}
        free = []
        for partition in partitions:
            owner = group.owners.get(partition)
            if owner in owned and len(owned[owner]) < fair:
                owned[owner].append(partition)
            else:
                free.append(partition)
        for partition in free:
            min(owned.values(), key=len).append(partition)
        group.owners = {p: member for member, ps in owned.items() for p in ps}
        for partition, member in group.owners.items():
            if before.get(partition) != member:
                group.since[partition] = group.generation


class MemorySource:
    """A reader of one topic, in a group or in none."""

    def __init__(
        self, broker: MemoryBroker, topic: str, group: str | None, uncommitted: bool = False
    ) -> None:
        broker.partitions(topic)
        self._broker = broker
        self._topic = topic
        self._group = group
        self._uncommitted = uncommitted
        self._member = broker.join(topic, group) if group else 0
        self._generation = 0
        self._owned: frozenset[int] = frozenset()
        self._positions: dict[int, int] = {}
        self._closed = False

    def poll(self, limit: int, timeout: float) -> Batch:
        """What is there; never waits, since nobody else runs."""
        batch = Batch()
        if self._group:
            group = self._broker.group(self._topic, self._group)
            if self._member not in group.members and not self._closed:
                # Its session was over: it joins again, and what it held is lost.
                self._member = self._broker.join(self._topic, self._group)
            if self._generation != group.generation:
                owned = frozenset(p for p, m in group.owners.items() if m == self._member)
                # What went to another and came back was lost and is new.
                kept = {p for p in owned & self._owned if group.since[p] <= self._generation}
                batch.revoked, batch.assigned = self._owned - kept, owned - kept
                self._generation = group.generation
                self._owned = owned
                for partition in batch.revoked:
                    self._positions.pop(partition, None)
        for partition, position in self._positions.items():
            position = self._read(partition, position, limit, batch)
            if position != self._positions[partition]:
                batch.positions[partition] = position
        self._positions.update(batch.positions)
        return batch

    def _read(self, partition: int, position: int, limit: int, batch: Batch) -> int:
        slots = self._broker.partitions(self._topic)[partition]
        size = sum(len(record.value) for record in batch.records)
        while position < len(slots):
            slot = slots[position]
            state = slot.transaction.state if slot.transaction else "committed"
            if state == "open" and not self._uncommitted:
                break
            if slot.record and (state == "committed" or self._uncommitted):
                if len(batch.records) >= limit or size >= MAX_BATCH_BYTES:
                    break
                batch.records.append(slot.record)
                size += len(slot.record.value)
            position += 1
        return position

    def start(self, partition: int, offset: int | None = None) -> None:
        """Begin to read a partition."""
        if offset is None:
            assert self._group, "a reader in no group has no committed offset"
            group = self._broker.group(self._topic, self._group)
            offset = group.offsets.get(partition, 0)
        self._positions[partition] = offset

    def stop(self, partition: int) -> None:
        """Yield nothing more of it."""
        self._positions.pop(partition, None)

    def ends(self) -> dict[int, int]:
        """The high watermarks."""
        return {p: len(slots) for p, slots in enumerate(self._broker.partitions(self._topic))}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        """Kafka's default partitioner."""
        return spread(keys, len(self._broker.partitions(self._topic)))

    def close(self) -> None:
        """Leave the group."""
        if self._group and not self._closed:
            self._broker.leave(self._topic, self._group, self._member)
        self._closed = True


class MemoryLog(MemorySource):
    """The handler's log."""

    def __init__(
        self,
        broker: MemoryBroker,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        super().__init__(broker, commands, group)
        self._commands_group = group
        self._events = events
        self._delivery = delivery
        self._id = transactional_id
        self._epoch = broker.initialise(transactional_id)

    def poll(self, limit: int, timeout: float) -> Batch:
        """The group's generation is noted with the batch."""
        batch = super().poll(limit, timeout)
        batch.fence = self._generation
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        """The three delivery levels are the order of the steps in here."""
        positions = offsets_of(batch, commits, self._positions)
        match self._delivery:
            case "exactly_once":
                transaction = self._broker.begin(self._id, self._epoch)
                ends = self._produce(commits, transaction)
                self._check(batch.fence)
                hit(Failpoint.HANDLER_OFFSETS)
                if transaction.state != "open":
                    raise Fenced(f"transactional id {self._id!r}: its transaction was aborted")
                self._offsets().update(positions)
                self._broker.end(self._id, "committed")
            case "at_least_once":
                ends = self._produce(commits, None)
                self._move(positions, batch.fence)
            case "at_most_once":
                self._move(positions, batch.fence)
                ends = self._produce(commits, None)
        return ends

    def _produce(
        self, commits: Sequence[Record], transaction: _Transaction | None
    ) -> dict[int, int]:
        ends: dict[int, int] = {}
        for record in commits:
            offset = self._broker.append(
                self._events, record.partition, record.key, record.value, transaction
            )
            ends[record.partition] = offset + 1
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def _move(self, positions: Mapping[int, int], fence: int) -> None:
        self._check(fence)
        self._offsets().update(positions)
        hit(Failpoint.HANDLER_OFFSETS)

    def _offsets(self) -> dict[int, int]:
        return self._broker.group(self._topic, self._commands_group).offsets

    def _check(self, fence: int) -> None:
        group = self._broker.group(self._topic, self._commands_group)
        if group.generation != fence:
            self._broker.end(self._id, "aborted")
            raise Fenced(f"group {self._commands_group!r} has moved on to another generation")

    def events(self) -> MemorySource:
        """A reader of the events topic."""
        return MemorySource(self._broker, self._events, None)

    def commands(self) -> MemorySource:
        """A reader of the commands topic."""
        return MemorySource(self._broker, self._topic, None)


class MemoryDelivery(Struct, frozen=True):
    """Acknowledged at once."""

    partition: int
    offset: int

    def result(self, timeout: float) -> tuple[int, int]:
        """Partition and offset."""
        return self.partition, self.offset


class MemorySender:
    """Sends commands."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> MemoryDelivery:
        """Append one record."""
        if partition is None:
            partition = self._broker.partition_for(topic, key)
        return MemoryDelivery(partition, self._broker.append(topic, partition, key, value, None))

    def flush(self, timeout: float) -> None:
        """Everything is there already."""

    def close(self) -> None:
        """Nothing to close."""
