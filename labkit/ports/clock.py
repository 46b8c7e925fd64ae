"""TODO."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Instants for measuring and for schedules; nothing is ever ordered by them."""

    def now(self) -> int:
        """Monotonic nanoseconds, comparable within one host."""

    def wall(self) -> int:
        """Unix milliseconds: what a calendar says."""


class SystemClock:
    """The host's clocks."""

    def now(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def wall(self) -> int:
        """Unix milliseconds."""
        return time.time_ns() // 1_000_000
