"""From a run that went wrong to the smallest one that goes wrong in the same way.

Decisions are made calm, left out or lowered, and faults are moved to an early failpoint, as long as
the same checker stays red; each candidate is played, and what it really decided is what is shrunk
further.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from labkit.ports.failpoints import ALL
from labkit.simulation.faults import DECISIONS
from labkit.simulation.tape import FAULTS, KINDS, READS, SCHEDULE, SCHEMAS, WORKLOAD

#: Runs that shrinking may take.
BUDGET = 500
#: Moved faults strike at one of the first so many passes of a failpoint.
MOVED = 3

Values = dict[str, list[int]]
Played = tuple[int, Values]


class Shrinker:
    """``play(values)`` runs a tape; if the same checker is red again, it returns how many steps
    the story has, and the decisions."""

    def __init__(
        self, values: Values, play: Callable[[Values], Played | None], budget: int = BUDGET
    ) -> None:
        self.best = values
        self._size: tuple[int, ...] = (sys.maxsize,)
        self.runs = 0
        self._play = play
        self._budget = budget
        self._tried: set[str] = set()

    def run(self) -> Values:
        """The smallest tape that was found."""
        self._try(self.best)
        before: tuple[int, ...] = ()
        while before != self._size and self.runs < self._budget:
            before = self._size
            for kind in (SCHEMAS, FAULTS, SCHEDULE, READS, WORKLOAD):
                self._calm_all(kind)
            for kind in (WORKLOAD, SCHEMAS, READS, FAULTS, SCHEDULE):
                self._chunks(kind)
            for kind in KINDS:
                self._lower(kind)
            self._move()
        return self.best

    def _calm_all(self, kind: str) -> None:
        if any(self.best[kind]):
            self._try({**self.best, kind: []})

    def _chunks(self, kind: str) -> None:
        """Calm and leave out, in chunks that get smaller, from the end; three decisions are a
        command."""
        half = max(1, len(self.best[kind]) // 2)
        sizes = {half >> n for n in range(half.bit_length())} | {DECISIONS, 3}
        for size in sorted(sizes, reverse=True):
            at = len(self.best[kind]) - size
            while at >= 0:
                for changed in _without(self.best[kind], at, at + size):
                    if self._try({**self.best, kind: changed}):
                        break
                at = min(at - size, len(self.best[kind]) - size)

    def _lower(self, kind: str) -> None:
        for at in range(len(self.best[kind]) - 1, -1, -1):
            values = self.best[kind]
            if at >= len(values):
                continue
            for lower in sorted({1, values[at] // 2, values[at] - 1}):
                if 0 < lower < values[at]:
                    changed = [*values[:at], lower, *values[at + 1 :]]
                    if self._try({**self.best, kind: changed}):
                        break

    def _move(self) -> None:
        """Faults at any effect: to a failpoint, so that commands before it can be left out."""
        at = 0
        while at < len(self.best[FAULTS]):
            values = self.best[FAULTS]
            one, kind, unnamed = (*values[at : at + 3], 0, 0)[:3]
            end = at + (DECISIONS if one else 1)
            if one and unnamed:
                for place in range(MOVED * len(ALL)):
                    moved = [one, kind, 0, place % len(ALL), place // len(ALL)]
                    if self._try({**self.best, FAULTS: [*values[:at], *moved, *values[end:]]}):
                        break
            at = end

    def _try(self, values: Values) -> bool:
        key = repr(values)
        if key in self._tried or self.runs >= self._budget:
            return False
        self._tried.add(key)
        self.runs += 1
        played = self._play(values)
        if played is None or (size := _size(*played)) >= self._size:
            return False
        self.best, self._size = played[1], size
        return True


def _without(values: Sequence[int], start: int, end: int) -> Iterator[list[int]]:
    if any(values[start:end]):
        yield [*values[:start], *(0 for _ in values[start:end]), *values[end:]]
    yield [*values[:start], *values[end:]]


def _size(steps: int, values: Values) -> tuple[int, ...]:
    """Fewer steps and things that are not calm, then lower ones, then a shorter tape."""
    return (
        steps + sum(value > 0 for kind in values.values() for value in kind),
        sum(sum(kind) for kind in values.values()),
        sum(len(kind) for kind in values.values()),
    )
