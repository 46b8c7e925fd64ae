"""The time lag of a role: the age of the oldest record that it has not read yet, in seconds.

A lag in offsets has no unit of time: 1,000 offsets are a second of a busy topic and an hour of a
quiet one, and transaction markers take offsets, too. So each look notes how far a topic goes *now*.
The age of the record at offset n is then the time since the topic went to n, interpolated between
two looks. No record is read for this, and no clock but that of the one who looks is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from labkit.run.positions import Place

#: Ends that are kept of a partition. With a longer history the lag would be told too short only
#: after that many looks in which it had grown without a break.
MOST_ENDS = 50_000


class _End:
    """A partition went to ``offset`` at the looks from ``first`` to ``last``."""

    __slots__ = ("first", "last", "offset")

    def __init__(self, offset: int, now: float) -> None:
        self.offset, self.first, self.last = offset, now, now


class TimeLag:
    """Fed with looks in the order of time; ``now`` is in seconds, of any one clock.

    What was written before the first look is taken to be as old as that look: the lag is then at
    least as long as told.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], deque[_End]] = {}

    def look(self, now: float, places: Iterable[Place]) -> float:
        """The longest lag of all partitions, in seconds; 0: everything is read."""
        return max(
            (
                self._age((place.topic, partition), now, end, place.reached.get(partition, 0))
                for place in places
                for partition, end in place.ends.items()
            ),
            default=0.0,
        )

    def _age(self, key: tuple[str, int], now: float, end: int, reached: int) -> float:
        ends = self._ends.setdefault(key, deque(maxlen=MOST_ENDS))
        if ends and ends[-1].offset >= end:
            ends[-1].last = now
        else:
            ends.append(_End(end, now))
        while len(ends) > 1 and ends[1].offset <= reached:
            ends.popleft()
        before = ends[0]
        if reached >= end:
            return 0.0
        if len(ends) == 1 or before.offset > reached:
            return now - before.first
        after = ends[1]
        share = (reached - before.offset) / (after.offset - before.offset)
        return now - (before.last + share * (after.first - before.last))
