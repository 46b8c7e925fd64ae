"""Sending commands to an in-memory topic."""

from __future__ import annotations

from msgspec import Struct

from labkit.adapters.memory_topics import MemoryTopics


class MemoryDelivery(Struct, frozen=True):
    """The result of a send, which is acknowledged at once."""

    partition: int
    offset: int

    def settled(self) -> bool:
        return True

    def result(self, timeout: float) -> tuple[int, int]:
        return self.partition, self.offset


class MemorySender:
    """Sends commands."""

    def __init__(self, broker: MemoryTopics) -> None:
        self._broker = broker

    def send(
        self, topic: str, key: bytes, value: bytes, partition: int | None = None
    ) -> MemoryDelivery:
        if partition is None:
            partition = self._broker.partition_for(topic, key)
        return MemoryDelivery(partition, self._broker.append(topic, partition, key, value, None))

    def flush(self, timeout: float) -> None:
        """Sends are acknowledged at once."""

    def close(self) -> None:
        """There is nothing to close."""
