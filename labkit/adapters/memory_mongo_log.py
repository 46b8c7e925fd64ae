"""The in-memory twin of the log on MongoDB: the same port and the same guarantees.

Unlike in Kafka, a commit is there as a whole or not at all, offsets have no gaps, each partition of
a group has an epoch of its own, and of two commits of one version, or of one command, the second is
refused. A relay follows a topic by a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct

from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import offsets_of
from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_store import MemoryStore
from labkit.adapters.memory_topics import MemoryTopics
from labkit.adapters.mongo_records import unique
from labkit.errors import Fenced
from labkit.ports.broker import Batch, CommandLog, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


class Transaction(Struct, frozen=True):
    """What a handler commits: records to a topic, and offsets of a group under ``fence``, the
    epochs of its partitions. ``once``: of a command there is one decision."""

    id: str
    epoch: int
    topic: str
    records: Sequence[Record] = ()
    source: tuple[str, str] = ("", "")
    member: int = 0
    positions: Mapping[int, int] = {}
    fence: Mapping[int, int] = {}
    once: bool = True


class Claim(Struct):
    """The newest relay of a topic, and how far it has saved; ``None``: no token holds."""

    epoch: int = 0
    token: dict[int, int] | None = None


class MemoryMongoLog(MemorySource):
    """The handler's log."""

    _broker: MemoryMongoBroker

    def __init__(
        self,
        broker: MemoryMongoBroker,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        super().__init__(broker, commands, group)
        self._events, self._delivery, self._id = events, delivery, transactional_id
        self._source = (commands, group)
        self._epoch = broker.take_over(commands, group, transactional_id, self._member)

    def poll(self, limit: int, timeout: float) -> Batch:
        """See the port; the batch carries the epochs of the partitions as its fence."""
        batch = super().poll(limit, timeout)
        since = self._broker.group(*self._source).since
        batch.fence = {partition: since[partition] for partition in self._owned}
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        positions = offsets_of(batch, commits, self._positions)
        return commit_in_order(
            self._delivery,
            transaction=lambda: self._transaction(commits, positions, batch),
            produce=lambda: self._produce(commits),
            move_offsets=lambda: self._move(positions, batch),
        )

    def _made(
        self, commits: Sequence[Record], positions: Mapping[int, int], batch: Batch
    ) -> Transaction:
        return Transaction(
            self._id,
            self._epoch,
            self._events,
            commits,
            self._source,
            self._member,
            positions,
            batch.fence or {},
            self._delivery == "exactly_once",
        )

    def _transaction(
        self, commits: Sequence[Record], positions: Mapping[int, int], batch: Batch
    ) -> dict[int, int]:
        made = self._made(commits, positions, batch)
        self._broker.check(made)
        hit(Failpoint.HANDLER_PRODUCED)
        hit(Failpoint.HANDLER_OFFSETS)
        return self._ends(made)

    def _produce(self, commits: Sequence[Record]) -> dict[int, int]:
        ends = self._ends(self._made(commits, {}, Batch()))
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def _move(self, positions: Mapping[int, int], batch: Batch) -> None:
        self._broker.write(self._made((), positions, batch))
        hit(Failpoint.HANDLER_OFFSETS)

    def _ends(self, made: Transaction) -> dict[int, int]:
        offsets = self._broker.write(made)
        return {r.partition: at + 1 for r, at in zip(made.records, offsets, strict=True)}

    def events(self) -> MemorySource:
        return self._broker.source(self._events)

    def commands(self) -> MemorySource:
        return self._broker.source(self._topic)


class MemoryMongoBroker(MemoryBroker):
    """Topics, groups and offsets as in one database of MongoDB."""

    new_log: ClassVar[Callable[..., CommandLog]] = MemoryMongoLog

    def __init__(self) -> None:
        super().__init__()
        self.relays: dict[str, Claim] = {}
        #: The member that a transactional id is in a group.
        self._owners: dict[str, int] = {}
        self._unique: set[tuple[str, str, object]] = set()

    def changes(self, topic: str) -> MemoryLogChanges:
        """Claim a topic for the relay, and follow the records that are added to it."""
        return MemoryLogChanges(self, topic)

    def take_over(self, topic: str, group: str, transactional_id: str, member: int) -> int:
        """Fence the owner of before, and end its session; returns the new epoch."""
        if (before := self._owners.get(transactional_id)) is not None:
            self.leave(topic, group, before)
        self._owners[transactional_id] = member
        return self.initialise(transactional_id)

    def check(self, transaction: Transaction) -> list[tuple[str, str, object]]:
        """What of a transaction must be unique. Raises ``Fenced`` where it cannot be committed."""
        if self._epochs[transaction.id] != transaction.epoch:
            raise Fenced(f"transactional id {transaction.id!r} has a newer owner")
        for partition in transaction.positions:
            group = self.group(*transaction.source)
            owner = group.owners.get(partition), group.since.get(partition)
            if owner != (transaction.member, transaction.fence.get(partition)):
                raise Fenced(
                    f"partition {partition} of {transaction.source[1]!r} has another owner"
                )
        keys: list[tuple[str, str, object]] = []
        for record in transaction.records:
            fields = unique(record.value, once=transaction.once)
            if "version" in fields:
                keys.append((transaction.topic, fields["stream"], fields["version"]))
            if "command" in fields:
                keys.append((transaction.topic, "", fields["command"]))
        if len(set(keys)) < len(keys) or not self._unique.isdisjoint(keys):
            raise Fenced(f"commit to {transaction.topic!r}: another owner has already committed it")
        return keys

    def write(self, transaction: Transaction) -> list[int]:
        """Commit all of it; returns the offsets of the records. Raises ``Fenced``."""
        self._unique.update(self.check(transaction))
        offsets = [
            MemoryTopics.append(self, transaction.topic, r.partition, r.key, r.value, None)
            for r in transaction.records
        ]
        if transaction.positions:
            self.group(*transaction.source).offsets.update(transaction.positions)
        return offsets


def in_memory(log: str) -> tuple[MemoryBroker, MemoryBroker, MemoryStore]:
    """The twins of a run in memory: broker, log and store."""
    broker = MemoryBroker()
    return broker, MemoryMongoBroker() if log == "mongodb" else broker, MemoryStore()


class MemoryLogChanges:
    """What is added to a topic, for one relay; see ``log.relay``."""

    def __init__(self, broker: MemoryMongoBroker, topic: str) -> None:
        self._broker, self._topic = broker, topic
        claim = broker.relays.setdefault(topic, Claim())
        claim.epoch += 1
        self._epoch, self._token = claim.epoch, claim.token
        self._at: dict[int, int] = {}

    def start(self, ends: Mapping[int, int]) -> None:
        """See the port."""
        token = self._token
        ahead = token is not None and any(ends[p] < at for p, at in token.items())
        self._at = dict(ends) if token is None or ahead else dict(token)

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """See the port; never waits."""
        found: list[Record] = []
        for partition, slots in enumerate(self._broker.partitions(self._topic)):
            at = self._at[partition]
            new = [slot.record for slot in slots[at : at + limit - len(found)] if slot.record]
            self._at[partition] = at + len(new)
            found += new
        return found

    def check(self) -> None:
        """See the port."""
        if self._broker.relays[self._topic].epoch != self._epoch:
            raise Fenced(f"another relay of {self._topic!r} took over")

    def save(self) -> None:
        """See the port."""
        self.check()
        self._broker.relays[self._topic].token = dict(self._at)

    def close(self) -> None:
        """There is nothing to close."""
