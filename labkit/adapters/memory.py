"""The in-memory twin of Kafka: the same port and the same guarantees, without a server.

It keeps what the core relies on: transactions with markers that include offsets, the last stable
offset, consumer groups with rebalances, and both fences. It is single-threaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from labkit.adapters.memory_log import MemoryLog
from labkit.adapters.memory_sender import MemorySender
from labkit.adapters.memory_source import MemorySource
from labkit.adapters.memory_topics import MemoryTopics
from labkit.ports.broker import CommandLog, Delivery

__all__ = ["MemoryBroker", "MemoryLog"]


class MemoryBroker(MemoryTopics):
    """A broker in memory; all its sources, logs and senders share its topics."""

    #: What makes a handler's log.
    new_log: ClassVar[Callable[..., CommandLog]] = MemoryLog

    def sender(self) -> MemorySender:
        return MemorySender(self)

    def source(
        self, topic: str, group: str | None = None, *, uncommitted: bool = False
    ) -> MemorySource:
        return MemorySource(self, topic, group, uncommitted)

    def log(
        self,
        commands: str,
        events: str,
        group: str,
        transactional_id: str,
        delivery: Delivery = "exactly_once",
    ) -> CommandLog:
        return self.new_log(self, commands, events, group, transactional_id, delivery)

    def committed(self, topic: str, group: str, *, settled: bool = False) -> dict[int, int]:
        found = self._groups.get((topic, group))
        return dict(found.offsets) if found else {}

    def version(self) -> str:
        return "memory"

    def close(self) -> None:
        """The topics live as long as this object."""
