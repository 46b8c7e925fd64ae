"""The sizes of the restart bench, and its figures in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import UsageError


class Sizes(Struct, frozen=True):
    """``rounds`` is the number of rounds that count; one more precedes them."""

    events: int = 100_000
    snapshot_every: int = 1_000
    events_after: int = 500
    batch_size: int = 500
    streams: int = 200_000
    times_longer: int = 5
    tail: int = 5_000
    rounds: int = 5

    def scaled(self, scale: float) -> Sizes:
        """The same proportions at a smaller scale. Raises ``UsageError``."""
        if not 0.001 <= scale <= 1:
            raise UsageError(f"--scale must be from 0.001 to 1, got {scale:g}")
        return msgspec.structs.replace(
            self,
            events=round(self.events * scale),
            snapshot_every=round(self.snapshot_every * scale),
            events_after=max(1, round(self.events_after * scale)),
            streams=round(self.streams * scale),
            tail=round(self.tail * scale),
        )


def seconds(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "each": [round(value, 4) for value in values],
    }
