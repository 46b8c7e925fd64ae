"""The clock: instants for measuring and for schedules, and waiting. Nothing is ordered by it."""

from __future__ import annotations

import time


class Clock:
    """The host's clocks; a test or a simulator hands in one of its own."""

    def now(self) -> int:
        """Monotonic nanoseconds, comparable within one host."""
        return time.monotonic_ns()

    def wall(self) -> int:
        """Unix milliseconds: what a calendar says."""
        return time.time_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def seconds(self) -> float:
        """Monotonic seconds, for time-outs."""
        return self.now() / 1e9


#: The clock that is used if none is handed in.
SYSTEM = Clock()
