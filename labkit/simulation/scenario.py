"""What a trial is about: services and processes, how many workers, and what the clients do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from random import Random
from typing import Any

from msgspec import Struct, structs

from labkit.errors import TimedOut, Unreachable, UsageError
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import NO_MESSAGE, RAW, workload_of
from labkit.lab import Lab
from labkit.messages import Command, ReleaseParked, Token
from labkit.ports.broker import Delivery
from labkit.service import Operation, Process, Service
from labkit.services import VERIFIED, VERIFIED_PROCESSES
from labkit.simulation.reading import WAYS, Readers, Surroundings
from labkit.simulation.tape import READS, WORKLOAD, Choose, Tape, odds
from labkit.write.bus import Sent

#: A client waits so long for an answer, and then sends again under the same id, so often.
PATIENCE_SECONDS, TRIES = 10.0, 20
#: Longer than it takes until a handler saves its states.
PAUSE_SECONDS = 1.0
#: A trial has so much poison at most.
POISON = 2
#: Between two looks of who releases parked streams.
KEEPER_SECONDS = 5.0


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
    wrote (``reading.WAYS``).
    """

    id: str
    command: Command
    again: bool = False
    late: bool = False
    expected_version: int | None = None
    pause: float = 0.0
    read: str = ""


class Poison(Struct, frozen=True):
    """Bytes that are no command, under a key of a service's topic: they park its stream."""

    service: str
    key: str
    raw: bytes
    late: bool = False
    pause: float = 0.0


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


def calls(scenario: Scenario, lab: Lab, tape: Tape) -> list[Call | Poison]:
    """What is sent, in order: the openings of the services, then their commands in turn.

    Each command is left out, sent, or sent twice. Poison comes anywhere between them.
    """
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
    return _poisoned(found, lab, tape)


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


def _sent(twice: float) -> Choose:
    """Once mostly; with a chance of ``twice`` each, twice at once or again at the end."""

    def choose(random: Random, bound: int) -> int:
        chance = random.random()
        return 2 if chance < twice else 3 if chance < 2 * twice else 1

    return choose


class Client:
    """One caller: sends its commands one after the other, each until it is answered."""

    def __init__(
        self, name: str, readers: Readers, history: History, calls: Sequence[Call | Poison]
    ) -> None:
        self._name = name
        self._readers = readers
        self._history = history
        self._world, self._lab = readers.world, readers.lab
        self._calls = [*calls, *(call for call in calls if call.late)]
        #: How many calls are answered, and how often the next one was sent: where it stands.
        self.answered = self.sent = 0

    @property
    def done(self) -> bool:
        """Whether all is answered."""
        return self.answered == len(self._calls)

    def __call__(self) -> None:
        for call in self._calls:
            if call.pause:
                self._world.clock.sleep(call.pause)
            if isinstance(call, Poison):
                self._put(call)
            else:
                for operation in [self._send(call) for _ in range(1 + call.again)]:
                    self._answered(operation, call)
            self.answered, self.sent = self.answered + 1, 0

    def _send(self, call: Call) -> Operation:
        self.sent += 1
        operation = self._history.send(
            call.command, id=call.id, expected_version=call.expected_version
        )
        self._history.acknowledge(PATIENCE_SECONDS)
        return operation

    def _put(self, poison: Poison) -> None:
        topic = self._lab.topic_name(f"{poison.service}.commands")
        with closing(self._lab.log_broker.sender()) as sender:
            sent = Sent("", poison.service, sender.send(topic, poison.key.encode(), poison.raw))
            self._history.raw += _acknowledged(sent)

    def _answered(self, operation: Operation, call: Call) -> None:
        for _ in range(TRIES):
            until = self._world.time + int(PATIENCE_SECONDS * 1e9)
            while operation.answer is None and self._world.time < until:
                self._history.hear(0.5)
            if operation.answer is not None:
                self._world.monitors.answered(call.id, operation.answer)
                self._world.note(
                    "answer",
                    f"hears that {call.id} is {operation.answer}",
                    (call.id, call.command.stream),
                    self._lab.bus.service_of(call.command).name + ".events",
                )
                if operation.answer.accepted:
                    self._readers.wrote(self._name, operation)
                    if call.read:
                        self._readers.read(self._name, operation, call.read)
                return
            operation = self._send(call)


class Keeper:
    """Somebody who looks after parked streams: drops what is no message, and has whatever else is
    stuck tried again, once."""

    def __init__(self, lab: Lab, history: History, world: Surroundings) -> None:
        self._lab = lab
        self._history = history
        self._world = world
        self._tried: set[tuple[str, int]] = set()

    def __call__(self) -> None:
        while True:
            self._world.clock.sleep(KEEPER_SECONDS)
            self.release()

    @property
    def done(self) -> bool:
        """Whether nobody waits behind what could be dropped. A handler saves a little later that a
        stream is parked, so the answers say it."""
        while self._history.hear(0.0):
            pass
        raw = (self._history.answer(token) for token in self._history.raw)
        answers = [*(operation.answer for operation in self._history), *raw]
        return not any(a and not a.final and NO_MESSAGE in a.reason for a in answers)

    def _parked(self, service: str) -> list[dict[str, Any]]:
        return self._lab.store.find(self._lab.services[service].states, {"dead": True})

    def release(self) -> None:
        """Have a look, once."""
        tokens: list[Token] = []
        for name in self._lab.services:
            for document in self._parked(name):
                stream, head = document["_id"], document["held"][0]
                drop = document["parked"].startswith(NO_MESSAGE)
                if not drop and (stream, head) in self._tried:
                    continue
                self._tried.add((stream, head))
                release = ReleaseParked(stream, drop=drop, head=head)
                tokens += _acknowledged(self._lab.bus.send(release, service=name))
        self._history.raw += tokens
        until = self._world.time + int(PATIENCE_SECONDS * 1e9)
        while None in map(self._history.answer, tokens) and self._world.time < until:
            self._history.hear(0.5)


def _acknowledged(sent: Sent) -> list[Token]:
    """Where it stands, if that was said."""
    try:
        return [sent.token(PATIENCE_SECONDS)]
    except (TimedOut, Unreachable):
        return []
