"""What ``labkit verify write`` sends: the workloads of several services, and all that is odd.

The calls of the services alternate at random, equally often, after what opens them. Then, as shares
of all commands: 5 % are sent a second time within the next calls; 1 % guess the version of their
stream, each with a rival that guesses alike, so that at most one of the two may win; 0.1 % are
poison. Half of the poison is bytes that are no command, on streams of their own and on hot ones,
where others then wait behind them; half is commands that meet a bug in a rule
(``planted_bugs.brittle``). What breaks a rule stands in the workloads.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from labkit.errors import UsageError
from labkit.messages import Command
from labkit.service import Service, Workload

REPEATED = 0.05
GUESSED = 0.01
POISON = 0.001
#: Bytes that are no command, and how the reason begins why these park their stream.
RAW = (b'{"id":"x","body":{"type":"Teleport"}}', b"\xff\x00 not JSON")
NO_MESSAGE = "not a message"
#: What opens the services is at most this share of all commands.
OPENING = 0.5
#: A repeat comes so many calls after the first at most.
LATER = 500
#: The streams of a service with the most commands are hot.
HOT = 8
#: The ids of commands that a planted bug stumbles over begin so.
CURSED = "cursed"


class Call(NamedTuple):
    """A command to send; or, without one, ``raw`` bytes to put under a key of a service's topic."""

    id: str
    command: Command | None
    expected_version: int | None = None
    service: str = ""
    key: str = ""
    raw: bytes = b""

    @property
    def poison(self) -> bool:
        """Whether it is meant to park its stream."""
        return self.command is None or self.id.startswith(CURSED)


def workload_of(service: Service) -> Workload:
    """The workload named ``busy``, or else the service's first; raises ``UsageError``."""
    if not service.workloads:
        raise UsageError(
            f"service {service.name!r} has no workload; verify and load need one: "
            "Service(..., workload=...)"
        )
    return service.workloads.get("busy") or next(iter(service.workloads.values()))


class Mixture:
    """``count`` commands, the same ones for the same seed; a repeat is a call more."""

    def __init__(self, services: Sequence[Service], count: int, seed: int = 1) -> None:
        self.count = count
        self._services = services
        self._workloads = {service.name: workload_of(service) for service in services}
        self._seed = seed

    def __iter__(self) -> Iterator[Call]:
        random = Random(self._seed)
        again: dict[int, list[Call]] = {}
        for position, call in enumerate(itertools.islice(self._calls(random), self.count)):
            yield call
            if call.command is not None and random.random() < REPEATED:
                later = random.choice((0, random.randrange(LATER)))
                again.setdefault(position + later, []).append(call)
            yield from again.pop(position, ())
        for rest in again.values():
            yield from rest

    def _calls(self, random: Random) -> Iterator[Call]:
        streams = {service.name: Counter[str]() for service in self._services}
        numbers = itertools.count(1)
        opening = self._opening()
        for name, first in opening:
            streams[name][first.stream] += 1
            yield Call(f"v{next(numbers)}", first, service=name)
        poison = max(4, int(self.count * POISON))
        every = max(1, (self.count - len(opening)) // poison)
        endless = {
            name: workload.commands(Random(f"{self._seed} {name}"))
            for name, workload in self._workloads.items()
        }
        for position in itertools.count():
            number, (name, commands) = next(numbers), random.choice(list(endless.items()))
            odd = position // every if position % every == every // 2 else -1
            if odd >= 0 and odd % 2:
                yield self._bytes(odd // 2, number, name, streams[name])
                continue
            command = next(commands, None)
            if command is None:
                raise UsageError(f"the workload of service {name!r} ended; it must be endless")
            known = streams[name][command.stream]
            streams[name][command.stream] += 1
            if odd >= 0:
                yield Call(f"{CURSED}{number}", command, service=name)
            elif random.random() < GUESSED / 2:
                guess = max(0, known - random.randrange(3))
                for rival in ("", "-rival"):
                    yield Call(f"v{number}{rival}", command, guess, name)
            else:
                yield Call(f"v{number}", command, service=name)

    def _opening(self) -> list[tuple[str, Command]]:
        """What makes the others possible, of all services in turn."""
        each = [
            [(name, command) for command in workload.opening(Random(f"{self._seed} {name}"))]
            for name, workload in self._workloads.items()
        ]
        in_turn = (c for row in itertools.zip_longest(*each) for c in row if c is not None)
        return list(itertools.islice(in_turn, int(self.count * OPENING)))

    def _bytes(self, odd: int, number: int, service: str, streams: Counter[str]) -> Call:
        """In turn on a stream of its own, or on a hot one."""
        hot = [stream for stream, _ in streams.most_common(HOT)]
        key = hot[odd % len(hot)] if odd % 2 and hot else f"own{number}"
        raw = RAW[odd // 2 % 2]
        return Call("", None, None, service, key, raw)
