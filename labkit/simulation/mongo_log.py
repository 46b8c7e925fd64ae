"""The twin of the log on MongoDB, where each effect is a place of the world."""

from __future__ import annotations

from labkit.adapters.memory_mongo_log import (
    MemoryLogChanges,
    MemoryMongoBroker,
    MemoryMongoLog,
    Transaction,
)
from labkit.ports.broker import Delivery, Record
from labkit.simulation import tell
from labkit.simulation.twins import COMMIT, SimulatedBroker, SimulatedReading


class SimulatedMongoLog(SimulatedReading, MemoryMongoLog):
    """The handler's log."""

    _broker: SimulatedMongoBroker

    def __init__(
        self,
        broker: SimulatedMongoBroker,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery,
    ) -> None:
        MemoryMongoLog.__init__(self, broker, commands, events, group, transactional_id, delivery)
        self._begin(broker.world)


class SimulatedMongoBroker(SimulatedBroker, MemoryMongoBroker):
    """The log on MongoDB in a world."""

    new_log = SimulatedMongoLog

    def changes(self, topic: str) -> SimulatedChanges:
        return SimulatedChanges(self, topic)

    def write(self, transaction: Transaction) -> list[int]:
        world, (commands, group) = self.world, transaction.source
        world.place(COMMIT)
        before = dict(self.committed(commands, group))
        offsets = super().write(transaction)
        tell.written_at_once(world, transaction.topic, transaction.records, offsets)
        world.monitors.committed(transaction.topic, (r.value for r in transaction.records))
        world.monitors.moved(group, before, transaction.positions)
        world.wake(transaction.topic)
        world.done(COMMIT)
        return offsets

    def lose_tokens(self) -> None:
        """The change streams cannot go on where the relays have saved."""
        for claim in self.relays.values():
            claim.token = None


class SimulatedChanges(MemoryLogChanges):
    """What a relay follows."""

    _broker: SimulatedMongoBroker

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """See the port; blocks the life until something is added."""
        world = self._broker.world
        world.place(f"follow {self._topic}")
        until = world.time + int(timeout * 1e9)
        world.before_poll(self._news, timeout)
        while not (found := super().poll(limit, 0)):
            left = (until - world.time) / 1e9
            if left <= 0 or not world.wait((self._topic,), left):
                break
        return found

    def _news(self) -> bool:
        """Whether a poll would find something now."""
        partitions = enumerate(self._broker.partitions(self._topic))
        return any(len(slots) > self._at[partition] for partition, slots in partitions)

    def save(self) -> None:
        self._broker.world.place(f"save {self._topic}")
        super().save()
