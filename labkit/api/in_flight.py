"""The commands in flight: a queue that is bounded from the request to the answer in the log.

A command is in flight from its admission until the log has an answer to it. By Little's law a bound
of N is a bound of time: at a capacity of C commands a second, an admitted command is answered after
about N / C seconds, however many more come.

A handler answers the commands of a partition in their order, so an answer to one says that those
before it have theirs. An answer that was not heard is so made up for by the next.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection
from heapq import heappop, heappush

from labkit.messages import Token
from labkit.ports.clock import Clock

#: Urgencies of RFC 9218: 0 to 7, the lowest is the most urgent. What nobody says is 3.
URGENT, NORMAL = 2, 3
#: Commands that can wait (4 to 7) get this share of the queue.
LOW_SHARE = 0.5
#: The pace of answers is that of the last seconds, looked at so often.
PACE_SECONDS, LOOK_SECONDS = 10.0, 0.5
LONGEST_RETRY_SECONDS = 60

Place = tuple[str, int]


class Slot:
    """The place of one command in the queue."""

    def __init__(self, queue: InFlight) -> None:
        self._queue = queue
        self._taken = True

    def sent(self, token: Token) -> None:
        """The broker has it: the answer gives the place back."""
        if self._taken:
            self._taken = False
            self._queue._sent(token)

    def leave(self) -> None:
        """Give the place back, if the command was not sent."""
        if self._taken:
            self._taken = False
            self._queue._leave()


class InFlight:
    """At most ``most`` commands, of which a share of ``reserve`` is for urgent ones; 0: any number.

    For any thread.
    """

    def __init__(self, most: int, reserve: float, clock: Clock) -> None:
        self._most, self._reserve = most, reserve
        self._clock = clock
        self._lock = threading.Lock()
        self._entering = 0
        self._open: dict[Place, list[int]] = {}
        self._count = 0
        self._reached: dict[Place, int] = {}
        self._answered = 0
        self._paces: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return self._entering + self._count

    @property
    def services(self) -> Collection[str]:
        """Those that owe an answer."""
        return {service for service, _ in list(self._open)}

    def room(self, urgency: int) -> int:
        """How many commands may be in flight when one of this urgency comes."""
        if urgency <= URGENT:
            return self._most
        share = 1 - self._reserve if urgency == NORMAL else LOW_SHARE
        return max(1, int(self._most * share))

    def enter(self, urgency: int) -> Slot | None:
        """A place for one more command; ``None``: there is none."""
        with self._lock:
            if self._most and len(self) >= self.room(urgency):
                return None
            self._entering += 1
        return Slot(self)

    def heard(self, service: str, partition: int, offset: int) -> None:
        """The log has the answer to this command, and so to all before it in its partition."""
        place = service, partition
        if not self._most:
            return
        with self._lock:
            self._reached[place] = max(offset, self._reached.get(place, -1))
            still = self._open.get(place, [])
            while still and still[0] <= offset:
                heappop(still)
                self._count -= 1
                self._answered += 1
            if not still:
                self._open.pop(place, None)
            self._look()

    def retry_after(self, urgency: int) -> int:
        """Whole seconds until there is room, at the pace of the last answers; 1 at least."""
        with self._lock:
            self._look()
            since, before = self._paces[0]
            seconds, answered = self._clock.seconds() - since, self._answered - before
            more = len(self) - self.room(urgency) + 1
        if answered <= 0 or seconds <= 0:
            return LONGEST_RETRY_SECONDS
        return min(max(1, math.ceil(more * seconds / answered)), LONGEST_RETRY_SECONDS)

    def _look(self) -> None:
        now, paces = self._clock.seconds(), self._paces
        if not paces or now - paces[-1][0] >= LOOK_SECONDS:
            paces.append((now, self._answered))
        while len(paces) > 1 and now - paces[1][0] >= PACE_SECONDS:
            paces.popleft()

    def _sent(self, token: Token) -> None:
        place = token.service, token.partition
        with self._lock:
            self._entering -= 1
            if not self._most:
                return
            if token.offset > self._reached.get(place, -1):  # its answer may have been faster
                heappush(self._open.setdefault(place, []), token.offset)
                self._count += 1
            else:
                self._answered += 1

    def _leave(self) -> None:
        with self._lock:
            self._entering -= 1
