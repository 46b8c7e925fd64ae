"""The handler's log in memory: commits and command offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import offsets_of
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_topics import Group, MemoryTopics, OpenTransaction
from labkit.errors import Fenced
from labkit.ports.broker import Batch, Delivery, Record
from labkit.ports.failpoints import Failpoint, hit


class MemoryLog(MemorySource):
    """The handler's log."""

    def __init__(
        self,
        broker: MemoryTopics,
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
        # Without transactions nothing is taken over.
        self._epoch = broker.initialise(transactional_id) if delivery == "exactly_once" else 0

    def poll(self, limit: int, timeout: float) -> Batch:
        """See the port; the batch carries the group's generation as its fence."""
        batch = super().poll(limit, timeout)
        batch.fence = self._generation
        return batch

    def commit(self, batch: Batch, commits: Sequence[Record]) -> dict[int, int]:
        positions = offsets_of(batch, commits, self._positions)
        return commit_in_order(
            self._delivery,
            transaction=lambda: self._transaction(commits, positions, batch.fence),
            produce=lambda: self._produce(commits, None),
            move_offsets=lambda: self._move(positions),
        )

    def _transaction(
        self, commits: Sequence[Record], positions: Mapping[int, int], fence: int
    ) -> dict[int, int]:
        transaction = self._broker.begin(self._id, self._epoch)
        ends = self._produce(commits, transaction)
        # Where this raises, the transaction stays open until its id is taken over.
        self._broker.hold(self._id, transaction, self._group_of(fence), positions)
        hit(Failpoint.HANDLER_OFFSETS)
        self._broker.commit(self._id, transaction)
        return ends

    def _produce(
        self, commits: Sequence[Record], transaction: OpenTransaction | None
    ) -> dict[int, int]:
        ends: dict[int, int] = {}
        for record in commits:
            offset = self._broker.append(
                self._events, record.partition, record.key, record.value, transaction
            )
            ends[record.partition] = offset + 1
        hit(Failpoint.HANDLER_PRODUCED)
        return ends

    def _move(self, positions: Mapping[int, int]) -> None:
        """Under the generation of the last poll, not of the batch: so do Kafka's consumers."""
        self._group_of(self._generation).offsets.update(positions)
        hit(Failpoint.HANDLER_OFFSETS)

    def _group_of(self, generation: int) -> Group:
        """The group; raises ``Fenced`` if it has a newer generation."""
        group = self._broker.group(self._topic, self._commands_group)
        if group.generation != generation:
            raise Fenced(f"group {self._commands_group!r} has a newer generation")
        return group

    def events(self) -> MemorySource:
        return MemorySource(self._broker, self._events, None)

    def commands(self) -> MemorySource:
        return MemorySource(self._broker, self._topic, None)
