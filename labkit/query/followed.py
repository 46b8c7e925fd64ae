"""What a query handler has to answer: queries that arrived, and subscriptions among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from msgspec import Struct

from labkit.ports.store import Noticed
from labkit.query.readers import Readers
from labkit.query.wire import QueryEnvelope
from labkit.read.freshness import Fresh, Goal
from labkit.read.queries import Asked
from labkit.read.view_reads import Place

#: Between two looks at the leases.
LEASES_SECONDS = 0.05


class Arrived(Struct):
    """A query that can be answered; ``until`` is when its requester gives up (monotonic seconds).

    ``goals`` are what the views must have reached, fixed at its arrival.
    """

    query: QueryEnvelope[Fresh]
    asked: Asked
    partition: int
    offset: int
    polled: int
    until: float
    goals: list[Goal]


class Followed(Struct):
    """A subscription; ``until`` is when its lease ends, ``given`` the last answer."""

    arrived: Arrived
    until: float
    given: bytes = b""


class Subscriptions:
    """Those of one handler, by the id of their query."""

    def __init__(self) -> None:
        self._followed: dict[str, Followed] = {}
        self._readers: Readers[str] = Readers()
        self._due: set[str] = set()
        self._leases_at = 0.0

    def __len__(self) -> int:
        return len(self._followed)

    def get(self, id: str) -> Followed | None:
        """The subscription, if it is known."""
        return self._followed.get(id)

    def put(self, arrived: Arrived, until: float) -> None:
        """A new one, whose first answer is due."""
        id = arrived.query.id
        self._followed[id] = Followed(arrived, until)
        self._readers.put(id, [(collection, None) for collection in arrived.asked.watched])
        self._due.add(id)

    def has_read(self, id: str, places: Iterable[Place]) -> None:
        """What its last answer was read from."""
        self._readers.put(id, places)

    def drop(self, id: str) -> None:
        """Its end."""
        self._followed.pop(id, None)
        self._readers.drop(id)
        self._due.discard(id)

    def hand_over(self, partitions: Set[int]) -> None:
        """Others own these partitions now."""
        for id, followed in list(self._followed.items()):
            if followed.arrived.partition in partitions:
                self.drop(id)

    def notice(self, noticed: Noticed) -> None:
        """Changes: those whom they concern are due."""
        self._due |= self._readers.concerned(noticed)

    def due(self, now: float) -> Iterator[Followed]:
        """Each that is to be read again; with the end of its lease, one is dropped."""
        if now >= self._leases_at:
            self._leases_at = now + LEASES_SECONDS
            for id in [id for id, followed in self._followed.items() if now > followed.until]:
                self.drop(id)
        due, self._due = self._due, set()
        for id in sorted(due):
            yield self._followed[id]
