"""Sessions: a reader that sees its own writes, and never goes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from labkit.messages import Token
from labkit.read.freshness import Fresh, Goal, Position, Version
from labkit.read.generations import Serving
from labkit.read.queries import Asked, Queries

T = TypeVar("T")


class Session(Queries):
    """Queries that see what this session wrote, and never less than it has read.

    Both hold within a service, whatever strategy a query asks for on top: ``wrote`` adds a write
    (by token or by version) to what every later read must show; and how far the views were at a
    read, they must be at the next one. With one primary they are, at no cost but the
    look; after a view was begun anew, or where another member answers, the next read waits.
    """

    def __init__(self, queries: Queries) -> None:
        super().__init__(
            queries._store, queries._services, queries._drive, queries._ends, queries._clock
        )
        self._floor: dict[tuple[str, int], Position] = {}
        self._writes: dict[tuple[str, int | str], Token | Version] = {}

    def wrote(self, goal: Token | Version) -> None:
        """From now on every read of its service shows this write."""
        key = goal.service, goal.partition if isinstance(goal, Token) else goal.stream
        if (known := self._writes.get(key)) is None or _of(known) < _of(goal):
            self._writes[key] = goal

    def turn_to(self, queries: Queries) -> None:
        """From now on another copy of the views answers. What was promised stays promised, since
        all copies count their positions in one log.
        """
        self._store, self._drive, self._ends = queries._store, queries._drive, queries._ends

    def _ask(self, asked: Asked, fresh: Fresh, read: Callable[[Serving], T]) -> T:
        def noted(views: Serving) -> T:
            for service in asked.services:
                for partition, checkpoint in views.checkpoints(f"{service}.view").items():
                    place = Position(service, partition, checkpoint.position)
                    known = self._floor.get((service, partition), place)
                    self._floor[service, partition] = max(known, place, key=lambda p: p.offset)
            # What the views show has passed the writes, so where they stand says enough.
            shown = set(asked.services)
            self._writes = {key: w for key, w in self._writes.items() if key[0] not in shown}
            return read(views)

        return super()._ask(asked, fresh, noted)

    def _goals(self, fresh: Fresh, services: Iterable[str]) -> list[Goal]:
        services = list(services)
        own: list[Goal] = [*self._writes.values(), *self._floor.values()]
        mine = [goal for goal in own if goal.service in services]
        return [*super()._goals(fresh, services), *mine]


def _of(goal: Token | Version) -> int:
    return goal.offset if isinstance(goal, Token) else goal.version
