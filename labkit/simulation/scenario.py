"""What a trial is about: services and processes, how many workers, and what the clients do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.experiments.verify.mixture import RAW, workload_of
from labkit.lab import Lab
from labkit.messages import Command
from labkit.ports.broker import Delivery
from labkit.service import Process, Service
from labkit.services import VERIFIED, VERIFIED_PROCESSES
from labkit.simulation.reading import WAYS
from labkit.simulation.schemas import (
    NEWER_COMMAND,
    NEWER_EVENT,
    OLDER_COMMAND,
    NewerEvent,
    elsewhere,
    newer,
)
from labkit.simulation.tape import READS, SCHEMAS, WORKLOAD, Choose, Tape, odds

#: Longer than it takes until a handler saves its states.
PAUSE_SECONDS = 1.0
#: A trial has so much poison at most.
POISON = 2
#: So many commands at most come to the stream of a newer event.
UPON = 2


class Scenario(Struct, frozen=True):
    """Sizes are upper bounds; the tape draws what is below them."""

    services: Sequence[str | Service] = VERIFIED[:1]
    processes: Sequence[str | Process] = ()
    commands: int = 20
    clients: int = 2
    handlers: int = 2
    projectors: int = 2
    queries: int = 1
    partitions: int = 2
    delivery: Delivery = "exactly_once"
    write_concern: str = "majority"
    log: str = "kafka"
    #: 0: who goes on is a random walk; else so many steps in which priorities change (PCT).
    horizon: int = 0


#: What can be simulated by name.
SCENARIOS = {
    "one": Scenario(),
    "three": Scenario(services=VERIFIED, processes=VERIFIED_PROCESSES, commands=30),
}


def chosen(
    name: str | None,
    services: Sequence[Any],
    processes: Sequence[Any],
    sizes: Mapping[str, Any],
) -> Scenario:
    """A scenario by its name, or of services of one's own; raises ``UsageError`` for both."""
    if name and (services or processes):
        raise UsageError(f"scenario {name!r} has its services already; leave out one of the two")
    if services or processes:
        return Scenario(services=tuple(services), processes=tuple(processes), **sizes)
    return structs.replace(SCENARIOS[name or "three"], **sizes)


class Call(Struct, frozen=True):
    """A command of a client.

    ``again``: it is sent twice at once, as by a client in a hurry; ``late``: once more at the end,
    as by one that has lost the answer. With ``expected_version`` it guesses the version of its
    stream. Before it the client waits for ``pause`` seconds. ``read``: how it then reads what it
    wrote (``reading.WAYS``). ``older``: it is first sent as an older client writes it.
    """

    id: str
    command: Command
    again: bool = False
    late: bool = False
    expected_version: int | None = None
    pause: float = 0.0
    read: str = ""
    older: bool = False


class Poison(Struct, frozen=True):
    """Bytes that are no command, under a key of a service's topic: they park its stream."""

    service: str
    key: str
    raw: bytes
    late: bool = False
    pause: float = 0.0


class Plan(Struct, frozen=True):
    """What is sent, in order; the event of a newer schema that is there before, if one is; and what
    is ``met`` of other schemas."""

    calls: Sequence[Call | Poison]
    newer: NewerEvent | None = None
    met: Sequence[tuple[str, str]] = ()

    @property
    def poisoned(self) -> bool:
        """Whether there is something that somebody has to drop."""
        return any(isinstance(call, Poison) for call in self.calls)


class Sizes(Struct, frozen=True):
    """What the tape has drawn of a scenario: how many of each. The calm choice is one, and no
    query handler."""

    clients: int
    handlers: int
    projectors: int
    partitions: int
    queries: int


def sizes(scenario: Scenario, tape: Tape) -> Sizes:
    def upto(name: str, most: int) -> int:
        return 1 + tape.draw(WORKLOAD, name, most)

    return Sizes(
        upto("clients", scenario.clients),
        upto("handlers", scenario.handlers),
        upto("projectors", scenario.projectors),
        upto("partitions", scenario.partitions),
        tape.draw(READS, "query handlers", 1 + scenario.queries),
    )


def planned(scenario: Scenario, lab: Lab, tape: Tape) -> Plan:
    """What is sent: the openings of the services, then their commands in turn.

    Each command is left out, sent, or sent twice. Poison comes anywhere between them.
    """
    calls = _calls(scenario, lab, tape)
    return _of_schemas(calls, _poisoned(calls, lab, tape), lab, tape)


def _calls(scenario: Scenario, lab: Lab, tape: Tape) -> list[Call]:
    each = []
    for service in lab.services.values():
        workload = workload_of(service)
        commands = workload.commands(Random(f"{tape.seed}:{service.name}"))
        opening = itertools.islice(
            workload.opening(Random(f"{tape.seed}:{service.name}")), scenario.commands // 2
        )
        each.append(itertools.chain(opening, commands))
    in_turn = (command for row in zip(*each, strict=False) for command in row)
    often = (0.05, 0.3)[tape.draw(WORKLOAD, "often twice", 2)]
    made: Counter[str] = Counter()
    found: list[Call] = []
    for number, command in enumerate(itertools.islice(in_turn, scenario.commands), 1):
        name = f"c{number}"
        sent = tape.draw(WORKLOAD, name, 4, _sent(often))
        guess = tape.draw(WORKLOAD, f"{name} guesses", 3, odds(0.15))
        pause = tape.draw(WORKLOAD, f"{name} after a pause", 2, odds(0.2))
        read = WAYS[tape.draw(READS, name, len(WAYS), odds(0.2))]
        if not sent:
            continue
        call = Call(name, command, sent == 2, sent == 3, pause=pause * PAUSE_SECONDS, read=read)
        if guess:
            known = max(0, made[command.stream] + guess - 2)
            call = structs.replace(call, expected_version=known)
            found.append(structs.replace(call, id=f"{name}-rival"))
        made[command.stream] += 1
        found.append(call)
    return found


def _poisoned(calls: Sequence[Call], lab: Lab, tape: Tape) -> list[Call | Poison]:
    """The same with a little poison, on a stream of its own or on one in use. It is drawn after the
    commands, so that it does not change them."""
    found: list[Call | Poison] = [*calls]
    for number in range(1, 1 + POISON):
        kind = tape.draw(WORKLOAD, f"poison {number}", 1 + len(RAW), odds(0.2))
        like = tape.draw(WORKLOAD, f"poison {number} is like", 1 + len(calls))
        before = tape.draw(WORKLOAD, f"poison {number} comes before", 1 + len(found))
        if kind:
            service, key = next(iter(lab.services)), f"own{number}"
            if like:
                command = calls[like - 1].command
                service, key = lab.bus.service_of(command).name, command.stream
            found.insert(before, Poison(service, key, RAW[kind - 1]))
    return found


def _of_schemas(calls: Sequence[Call], found: list[Call | Poison], lab: Lab, tape: Tape) -> Plan:
    """With commands and an event of other schemas; poison does not come to the stream of that.

    In half of all trials there is nothing of them (swarm).
    """
    if not tape.draw(SCHEMAS, "other schemas", 2):
        return Plan(found)
    met, event = [], None
    if tape.draw(SCHEMAS, "a client is newer", 2, odds(0.4)) and calls:
        like = calls[tape.draw(SCHEMAS, "its command is like", len(calls))]
        before = tape.draw(SCHEMAS, "its command comes before", 1 + len(found))
        service, raw = lab.bus.service_of(like.command), newer(like.command, f"{like.id}-newer")
        found.insert(before, Poison(service.name, like.command.stream, raw))
        met.append(NEWER_COMMAND)
    if tape.draw(SCHEMAS, "a handler was newer", 2, odds(0.4)):
        service = [*lab.services.values()][tape.draw(SCHEMAS, "its service", len(lab.services))]
        event = NewerEvent(service.name, "of-newer-code")
        mine = [c.command for c in calls if lab.bus.service_of(c.command) is service]
        for number in range(1, 1 + UPON):
            which = tape.draw(SCHEMAS, f"command {number} upon it is like", 1 + len(mine))
            before = tape.draw(SCHEMAS, f"command {number} upon it comes before", 1 + len(found))
            moved = elsewhere(mine[which - 1], event.stream, service.codec) if which else None
            if moved is not None:
                found.insert(before, Call(f"upon{number}", moved))
        met.append(NEWER_EVENT)
    # Last, since these are as many decisions as there are commands.
    if tape.draw(SCHEMAS, "clients are older", 2):
        for at, call in enumerate(found):
            if isinstance(call, Call) and tape.draw(SCHEMAS, call.id, 2, odds(0.3)):
                found[at] = structs.replace(call, older=True)
                met.append(OLDER_COMMAND)
    return Plan(found, event, met)


def _sent(twice: float) -> Choose:
    """Once mostly; with a chance of ``twice`` each, twice at once or again at the end."""

    def choose(random: Random, bound: int) -> int:
        chance = random.random()
        return 2 if chance < twice else 3 if chance < 2 * twice else 1

    return choose
