"""What the clients of a trial do: they send and read, and one of them releases parked streams."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from labkit.errors import TimedOut, Unreachable
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import NO_MESSAGE
from labkit.lab import Lab
from labkit.log.snapshots import CURE
from labkit.messages import ReleaseParked, Token
from labkit.service import Operation
from labkit.simulation.reading import Readers, Surroundings
from labkit.simulation.scenario import Call, Poison
from labkit.simulation.schemas import older
from labkit.write.bus import Sent

#: A client waits so long for an answer, and then sends again under the same id, so often.
PATIENCE_SECONDS, TRIES = 10.0, 20
#: Between two looks of who releases parked streams.
KEEPER_SECONDS = 5.0


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
        if call.older and self.sent == 1:
            return self._send_older(call)
        operation = self._history.send(
            call.command, id=call.id, expected_version=call.expected_version
        )
        self._history.acknowledge(PATIENCE_SECONDS)
        return operation

    def _send_older(self, call: Call) -> Operation:
        service = self._lab.bus.service_of(call.command).name
        topic, key = self._lab.topic_name(f"{service}.commands"), call.command.stream.encode()
        value = older(call.command, call.id, call.expected_version)
        operation = self._history.invoke(
            call.command, id=call.id, expected_version=call.expected_version
        )
        with closing(self._lab.log_broker.sender()) as sender:
            self._history.send_by(
                lambda: Sent(call.id, service, sender.send(topic, key, value)), operation
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
        waits = (a.reason for a in answers if a and not a.final)
        # What waits for handlers of newer code is not dropped.
        return not any(NO_MESSAGE in reason and CURE not in reason for reason in waits)

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
