"""When a handler is to look at a stream again: retries and scheduled commands."""

from __future__ import annotations

import heapq


class Timers:
    """Which streams to look at when, since something waits in them.

    An entry too many is harmless: whoever looks finds nothing due.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []

    def note(self, at: int | None, partition: int, key: str) -> None:
        """Look at this stream at this instant (Unix milliseconds)."""
        if at is not None:
            heapq.heappush(self._heap, (at, partition, key))

    def wait(self, now: int, longest: float) -> float:
        """How many seconds to wait for other things, at most ``longest``."""
        if not self._heap:
            return longest
        return min(longest, max(0, self._heap[0][0] - now) / 1000)

    def pop(self, now: int, limit: int) -> dict[str, int]:
        """At most ``limit`` streams whose instant has come, with their partitions."""
        found: dict[str, int] = {}
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            _, partition, key = heapq.heappop(self._heap)
            found[key] = partition
        return found

    def forget(self, partitions: frozenset[int]) -> None:
        """Drop what belongs to partitions that are given up."""
        self._heap = [entry for entry in self._heap if entry[1] not in partitions]
        heapq.heapify(self._heap)
