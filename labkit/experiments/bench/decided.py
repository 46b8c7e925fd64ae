"""What becomes of the commands of a workload, decided in this process by the service's own rules.

The rules are pure, so a bench knows beforehand which commands are accepted, and the versions and
states that they lead to. It is the only writer of the streams, and it compares these with what the
run made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from labkit.errors import Refused, UsageError
from labkit.messages import Command, Event
from labkit.service import Service

#: A workload that gives nothing usable in this number of commands is given up.
MOST_IN_VAIN = 100_000


class Taken(Struct, frozen=True):
    """A command that changes its stream: the events, and the version and state after them."""

    command: Command
    events: tuple[Event, ...]
    version: int
    state: Any

    @property
    def stream(self) -> str:
        return self.command.stream


class DecidedStreams:
    """The streams of a service, as the rules make them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._at: dict[str, tuple[int, Any]] = {}

    def take(self, command: Command) -> Taken | None:
        """Decide on a command; ``None``: it is refused, or changes nothing."""
        service, stream = self._service, command.stream
        version, state = self._at.get(stream, (0, None))
        try:
            command.validate()
            events = service.decide[type(command)](state, command)
        except Refused:
            return None
        if not events:
            return None
        for event in events:
            state = service.evolve(state, event)
        version += len(events)
        self._at[stream] = version, state
        return Taken(command, events, version, state)

    def taken(self, commands: Iterable[Command]) -> Iterator[Taken]:
        """Those of the commands that change their stream. Raises ``UsageError`` if none comes."""
        in_vain = 0
        for command in commands:
            if (found := self.take(command)) is not None:
                in_vain = 0
                yield found
            elif (in_vain := in_vain + 1) >= MOST_IN_VAIN:
                raise UsageError(
                    f"the rules of service {self._service.name!r} accepted none of "
                    f"{in_vain:,} commands of its workload"
                )


class Share:
    """The streams of one of several writers of the same workload.

    The streams take turns in the order in which they first appear: each process finds the same.
    ``slots`` of every ``total`` streams belong to this writer.
    """

    def __init__(self, slots: range, total: int) -> None:
        self._slots, self._total = slots, total
        self._seen: dict[str, int] = {}

    def own(self, commands: Iterable[Command]) -> Iterator[Command]:
        """The commands to its streams. Raises ``UsageError`` if none comes."""
        in_vain = 0
        for command in commands:
            slot = self._seen.setdefault(command.stream, len(self._seen) % self._total)
            if slot in self._slots:
                in_vain = 0
                yield command
            elif (in_vain := in_vain + 1) >= MOST_IN_VAIN:
                raise UsageError(
                    f"of {in_vain:,} commands none was for a stream of writer {self._slots}; the "
                    f"workload has {len(self._seen)} streams, too few for all writers"
                )
