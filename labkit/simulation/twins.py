"""The twin of Kafka, where each effect is a place of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from labkit.adapters.memory import MemoryBroker
from labkit.adapters.memory_log import MemoryLog
from labkit.adapters.memory_sender import MemoryDelivery, MemorySender
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_topics import OpenTransaction, TransactionState
from labkit.errors import OutcomeUnknown, Unreachable
from labkit.ports.broker import Batch, CommandLog, Delivery
from labkit.simulation import tell
from labkit.simulation.world import World

#: A dead member leaves its group after so long, and its open transaction is undone.
SESSION_SECONDS = 3.0
TRANSACTION_SECONDS = 10.0
#: The place before a transaction is committed.
COMMIT = "commit"


class SimulatedReading(MemorySource):
    """A source whose polls block the life, and whose life may end without closing it."""

    _broker: SimulatedBroker

    def _begin(self, world: World) -> None:
        self._world = world
        if self._group and (life := world.current) is not None:
            life.legacies.append(self._bequeath)

    def _bequeath(self) -> None:
        """Its life has ended: its session ends later."""
        if not self._closed and self._group:
            member, name = self._member, self._group

            def leave() -> None:
                self._broker.leave(self._topic, name, member)

            def rank() -> int | None:
                members = sorted(self._broker.group(self._topic, name).members)
                return members.index(member) if member in members else None

            label = f"the session of a dead member of {name} ends"
            self._world.later(label, SESSION_SECONDS, leave, rank)

    def poll(self, limit: int, timeout: float) -> Batch:
        self._world.place(f"poll {self._topic}")
        until = self._world.time + int(timeout * 1e9)
        while True:
            self._world.before_poll(self._news, (until - self._world.time) / 1e9)
            batch = super().poll(limit, 0)
            left = (until - self._world.time) / 1e9
            if batch.records or batch.positions or batch.assigned or batch.revoked or left <= 0:
                tell.fetched(self._world, self._topic, batch)
                return batch
            if not self._world.wait((self._topic,), left) and self._world.current is None:
                return batch

    def _news(self) -> bool:
        """Whether a poll would find something now: a new share of the partitions, or a record."""
        if self._group:
            group = self._broker.group(self._topic, self._group)
            if self._member not in group.members:
                return True
            owned = frozenset(p for p, m in group.owners.items() if m == self._member)
            if owned != self._owned or any(group.since[p] > self._generation for p in owned):
                return True
        topic = self._broker.partitions(self._topic)
        nexts = (topic[p][at] for p, at in self._positions.items() if at < len(topic[p]))
        return any(
            self._uncommitted or not slot.transaction or slot.transaction.state != "open"
            for slot in nexts
        )

    def start(self, partition: int, offset: int | None = None) -> int:
        if offset is None:
            self._world.place(f"offsets {self._topic}")
        return super().start(partition, offset)

    def ends(self) -> dict[int, int]:
        self._world.place(f"ends {self._topic}")
        return super().ends()


class SimulatedSource(SimulatedReading):
    """A reader of one topic."""

    def __init__(
        self, broker: SimulatedBroker, topic: str, group: str | None, uncommitted: bool = False
    ) -> None:
        super().__init__(broker, topic, group, uncommitted)
        self._begin(broker.world)


class SimulatedLog(SimulatedReading, MemoryLog):
    """The handler's log."""

    def __init__(
        self,
        broker: SimulatedBroker,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        MemoryLog.__init__(self, broker, commands, events, group, transactional_id, delivery)
        self._begin(broker.world)
        if (life := broker.world.current) is not None:
            life.legacies.append(self._bequeath_transaction)

    def _move(self, positions: Mapping[int, int]) -> None:
        before = dict(self._broker.group(self._topic, self._commands_group).offsets)
        super()._move(positions)
        self._broker.world.monitors.moved(self._commands_group, before, positions)

    def _bequeath_transaction(self) -> None:
        def undo() -> None:
            self._broker.abandon(self._id, self._epoch)

        def open_still() -> bool:
            return self._broker.is_open(self._id, self._epoch)

        if open_still():
            label = f"the transaction that {self._id} left open is undone"
            self._world.later(label, TRANSACTION_SECONDS, undo, lambda: open_still() or None)

    def close(self) -> None:
        """What it leaves open ends by the broker's time-out, as if its life had ended."""
        super().close()
        self._bequeath_transaction()

    def events(self) -> SimulatedSource:
        return SimulatedSource(self._broker, self._events, None)

    def commands(self) -> SimulatedSource:
        return SimulatedSource(self._broker, self._topic, None)


class _Unsent(MemoryDelivery, frozen=True):
    """A send that was not acknowledged; whether it was done or not, nobody knows."""

    why: str = ""
    told: Callable[[], None] = lambda: None

    def result(self, timeout: float) -> tuple[int, int]:
        self.told()
        raise Unreachable(self.why)


class SimulatedSender(MemorySender):
    """Acknowledgements may be lost. What is in flight behind a record that failed fails as well: so
    does an idempotent producer keep the order of a partition."""

    def __init__(self, broker: SimulatedBroker) -> None:
        super().__init__(broker)
        self._failed: dict[tuple[str, int], str] = {}

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> MemoryDelivery:
        if partition is None:
            partition = self._broker.partition_for(topic, key)
        if (why := self._failed.get((topic, partition))) is None:
            try:
                return super().send(topic, key, value, partition)
            except (Unreachable, OutcomeUnknown) as error:
                why = self._failed[topic, partition] = str(error)
        return _Unsent(0, 0, why, self._failed.clear)

    def flush(self, timeout: float) -> None:
        """Nothing is in flight any more."""
        self._failed.clear()


class SimulatedBroker(MemoryBroker):
    """A broker in memory, in a world; ``first``: commits come here first, and not by a relay."""

    new_log: ClassVar[Callable[..., CommandLog]] = SimulatedLog

    def __init__(self, world: World, *, first: bool = True) -> None:
        super().__init__()
        self.world = world
        self.first = first

    def sender(self) -> MemorySender:
        return SimulatedSender(self)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> SimulatedSource:
        return SimulatedSource(self, topic, group, uncommitted)

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, within: OpenTransaction | None
    ) -> int:
        self.world.place(f"append {topic}")
        offset = super().append(topic, partition, key, value, within)
        tell.appended(self.world, topic, partition, offset, value)
        if within is None and self.first:
            self.world.monitors.committed(topic, [value])
        self.world.wake(topic)
        self.world.done(f"append {topic}")
        return offset

    def begin(self, transactional_id: str, epoch: int) -> OpenTransaction:
        self.world.place("begin")
        return super().begin(transactional_id, epoch)

    def commit(self, transactional_id: str, transaction: OpenTransaction) -> None:
        self.world.place(COMMIT)
        super().commit(transactional_id, transaction)
        self.world.done(COMMIT)

    def end(self, transactional_id: str, state: TransactionState) -> None:
        transaction = self._open.get(transactional_id)
        group = transaction.group if transaction is not None else None
        before = dict(group.offsets) if group is not None else {}
        super().end(transactional_id, state)
        if transaction is not None:
            if state == "committed":
                self._monitored(transaction, transactional_id, before)
            tell.ended(self.world, self._topics, transaction)
            for topic in {topic for topic, _ in transaction.wrote}:
                self.world.wake(topic)

    def _monitored(
        self, transaction: OpenTransaction, transactional_id: str, before: Mapping[int, int]
    ) -> None:
        monitors = self.world.monitors
        for topic, partition in sorted(transaction.wrote):
            slots = self._topics[topic][partition]
            monitors.committed(
                topic,
                (s.record.value for s in slots if s.transaction is transaction and s.record),
            )
        monitors.moved(f"the group of {transactional_id}", before, transaction.offsets)

    def join(self, topic: str, group: str) -> int:
        self.world.place(f"join {group}")
        member = super().join(topic, group)
        self.world.wake(topic)
        return member

    def leave(self, topic: str, group: str, member: int) -> None:
        super().leave(topic, group, member)
        self.world.wake(topic)

    def is_open(self, transactional_id: str, epoch: int) -> bool:
        return transactional_id in self._open and self._epochs[transactional_id] == epoch

    def abandon(self, transactional_id: str, epoch: int) -> None:
        """Undo the transaction of an owner that has no successor yet, and fence it."""
        if self.is_open(transactional_id, epoch):
            self.end(transactional_id, "aborted")
            self._epochs[transactional_id] += 1
