"""The handler's log in memory: commits and command offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.adapters.delivery import commit_in_order
from labkit.adapters.kafka import offsets_of
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_topics import MemoryTopics, OpenTransaction
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
        self._epoch = broker.initialise(transactional_id)

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
            move_offsets=lambda: self._move(positions, batch.fence),
        )

    def _transaction(
        self, commits: Sequence[Record], positions: Mapping[int, int], fence: int
    ) -> dict[int, int]:
        transaction = self._broker.begin(self._id, self._epoch)
        ends = self._produce(commits, transaction)
        self._check(fence)
        group = self._broker.group(self._topic, self._commands_group)
        self._broker.hold(self._id, transaction, group, positions)
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
            raise Fenced(f"group {self._commands_group!r} has a newer generation")

    def events(self) -> MemorySource:
        return MemorySource(self._broker, self._events, None)

    def commands(self) -> MemorySource:
        return MemorySource(self._broker, self._topic, None)
