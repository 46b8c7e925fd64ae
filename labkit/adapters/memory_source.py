"""Reading an in-memory topic."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.adapters.kafka import spread
from labkit.adapters.memory_topics import MemoryTopics
from labkit.errors import Pending
from labkit.ports.broker import MAX_BATCH_BYTES, Batch


class MemorySource:
    """A reader of one topic, in a consumer group or in none."""

    def __init__(
        self, broker: MemoryTopics, topic: str, group: str | None, uncommitted: bool = False
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
        """See the port; never waits, because there are no other threads."""
        batch = Batch()
        if self._group:
            self._rebalance(self._group, batch)
        for partition, position in self._positions.items():
            position = self._read(partition, position, limit, batch)
            if position != self._positions[partition]:
                batch.positions[partition] = position
        self._positions.update(batch.positions)
        return batch

    def _rebalance(self, name: str, batch: Batch) -> None:
        group = self._broker.group(self._topic, name)
        if self._member not in group.members and not self._closed:
            # The session has expired: join again as a new member, which owns nothing yet.
            self._member = self._broker.join(self._topic, name)
        if self._generation == group.generation:
            return
        owned = frozenset(p for p, m in group.owners.items() if m == self._member)
        # A partition that moved away and came back counts as revoked and assigned.
        kept = {p for p in owned & self._owned if group.since[p] <= self._generation}
        batch.revoked, batch.assigned = self._owned - kept, owned - kept
        self._generation = group.generation
        self._owned = owned
        for partition in batch.revoked:
            self._positions.pop(partition, None)

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

    def start(self, partition: int, offset: int | None = None) -> int:
        if offset is None:
            assert self._group, "a reader in no group has no committed offset"
            group = self._broker.group(self._topic, self._group)
            if any(partition in transaction.offsets for transaction in group.pending):
                raise Pending(f"the offsets of {self._topic}:{partition} are not settled")
            offset = group.offsets.get(partition, 0)
        self._positions[partition] = offset
        return offset

    def stop(self, partition: int) -> None:
        self._positions.pop(partition, None)

    def ends(self) -> dict[int, int]:
        return {p: len(slots) for p, slots in enumerate(self._broker.partitions(self._topic))}

    def partitions_for(self, keys: Sequence[bytes]) -> list[int]:
        return spread(keys, len(self._broker.partitions(self._topic)))

    def close(self) -> None:
        if self._group and not self._closed:
            self._broker.leave(self._topic, self._group, self._member)
        self._closed = True
