"""How old what a view shows is: at least so many seconds lie between the log and the view.

A *mark* says that a command was in its topic, or its commit in the log, at an instant. A view that
has not applied that command now is behind by at least the time since then.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labkit.ports.clock import Clock

#: Marks of less than this many seconds are one, and a partition has at most this number of marks:
#: an age is exact to the first, and beyond the second those that came last have the same instant.
MARK_SECONDS, MOST_MARKS = 0.1, 1_000
#: The views are looked at so often, however many ask.
LOOK_SECONDS = 0.1


@dataclass
class _Mark:
    at: float
    offset: int


class Ages:
    """The ages of the views of each service; ``reached`` gives the highest command offsets that
    they have applied, by partition. For any thread."""

    def __init__(self, reached: Callable[[str], Mapping[int, int]], clock: Clock) -> None:
        self._reached = reached
        self._clock = clock
        self._lock = threading.Lock()
        self._marks: dict[str, dict[int, deque[_Mark]]] = {}
        self._looked: dict[str, tuple[float, Mapping[int, int]]] = {}

    def mark(self, service: str, partition: int, offset: int) -> None:
        """This command is there by now."""
        now = self._clock.seconds()
        with self._lock:
            marks = self._marks.setdefault(service, {}).setdefault(partition, deque())
            if not marks or (
                offset > marks[-1].offset
                and now - marks[-1].at >= MARK_SECONDS
                and len(marks) < MOST_MARKS
            ):
                marks.append(_Mark(now, offset))
            else:
                marks[-1].offset = max(offset, marks[-1].offset)

    def of(self, service: str, anew: bool = False) -> float:
        """How many seconds the views of a service are behind, at least; 0: they show all that is
        known here. ``anew``: what was seen a moment ago is not enough."""
        now = self._clock.seconds()
        at, reached = self._looked.get(service, (-LOOK_SECONDS, {}))
        if anew or not 0 <= now - at < LOOK_SECONDS:
            reached = self._reached(service)
            self._looked[service] = now, reached
        oldest = now
        with self._lock:
            for partition, marks in self._marks.get(service, {}).items():
                while marks and marks[0].offset <= reached.get(partition, -1):
                    marks.popleft()
                if marks:
                    oldest = min(oldest, marks[0].at)
        return now - oldest
