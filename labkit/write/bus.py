"""The command bus: send a command, and find its answer in the log."""

from __future__ import annotations

import re
import reprlib
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from labkit.errors import DecodeError, Overloaded, TimedOut, UsageError
from labkit.log.tail import Tail
from labkit.messages import (
    MAX_COMMAND_BYTES,
    MAX_ID,
    Answer,
    Command,
    Commit,
    Envelope,
    Token,
    encode,
    stamped,
)
from labkit.ports.broker import Acknowledgement, Sender, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.ids import Ids, new_id
from labkit.service import Service
from labkit.write.decisions import DAY_MS, MAX_AHEAD_MS

#: How many answers the bus keeps for those who ask late.
HEARD_WINDOW = 10_000
#: The longest instant on the wire.
LATEST = 2**63 - 1

#: What nobody takes is shown in so many characters: with its beginning and its end.
_repr = reprlib.Repr()
_repr.maxother = 300


class Sent:
    """A command on its way."""

    def __init__(self, id: str, service: str, delivery: Acknowledgement) -> None:
        self.id = id
        self._service = service
        self._delivery = delivery

    def token(self, timeout: float = 30.0) -> Token:
        """Where the command stands, once the broker has acknowledged it."""
        return Token(self._service, *self._delivery.result(timeout))


class Prepared(NamedTuple):
    """A command encoded ahead of its instants, for a load generator: see ``CommandBus.prepare``."""

    topic: str
    key: bytes
    envelope: bytes


class CommandBus:
    """Sends commands to their service's topic.

    There is no reply topic: every command leaves a commit in the log, and the bus tails the events
    topic for the one that carries the command's id. ``tail(service)`` opens that reader.
    ``in_flight`` is how many commands may wait for the broker's acknowledgement; 0: any number.
    """

    def __init__(
        self,
        routes: dict[type[Command], Service],
        topic: Callable[[str], str],
        sender: Sender,
        tail: Callable[[str], Source],
        clock: Clock = SYSTEM,
        ids: Ids = new_id,
        drive: Callable[[], None] | None = None,
        in_flight: int = 0,
    ) -> None:
        self._routes = routes
        self._topic = topic
        self._sender = sender
        self._tail = tail
        self._tails: dict[str, Tail] = {}
        self._services = {service.name: service for service in routes.values()}
        self._heard: dict[Token, Answer] = {}
        self._clock = clock
        self._ids = ids
        self._drive = drive or (lambda: None)
        self._most = in_flight
        self._unacknowledged: deque[Acknowledgement] = deque()

    def service_of(self, command: Command, service: str | None = None) -> Service:
        """Who decides on this command; raises ``UsageError`` where nobody does."""
        found = self._services.get(service) if service else self._routes.get(type(command))
        if found is None:
            where = f"service {service!r}" if service else "service"
            what = type(command).__name__ if isinstance(command, Command) else f"{command!r:.60}"
            raise UsageError(f"no {where} takes {what}")
        return found

    def send(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        deliver_at: datetime | None = None,
        correlation: str = "",
        service: str | None = None,
        intended: int = 0,
    ) -> Sent:
        """Queue a command. It is safe only once its token is there.

        Send it again with the same ``id`` as often as you like: it takes effect once.
        ``deliver_at`` is an instant with a time zone: until then the command waits in its stream.
        ``correlation`` comes back with the commit. ``service`` is needed only for commands that
        every service takes. ``intended`` is the instant an open-loop load wanted it sent (monotonic
        nanoseconds). Raises ``UsageError`` for what no handler would take, and ``Overloaded`` if
        the broker is to acknowledge too many already; nothing is sent then.
        """
        to = self.service_of(command, service)
        self._check_room()
        sent = self._clock.now()
        envelope = Envelope(
            id=self._ids() if id is None else id,
            body=command,
            expected_version=expected_version,
            deliver_at=None if deliver_at is None else _unix_ms(deliver_at, self._clock.wall()),
            correlation=correlation,
            intended=intended or sent,
            sent=sent,
        )
        value, stream = _wire(envelope, to)
        delivery = self._sender.send(self._topic(f"{to.name}.commands"), stream.encode(), value)
        if self._most:
            self._unacknowledged.append(delivery)
        return Sent(envelope.id, to.name, delivery)

    def prepare(self, command: Command, *, id: str, correlation: str = "") -> Prepared:
        """Check and encode a command now, to be sent later by ``send_prepared``.

        Raises ``UsageError`` as ``send`` does.
        """
        to = self.service_of(command)
        _, stream = _wire(Envelope(id, command, None, None, correlation, LATEST, LATEST), to)
        envelope = encode(Envelope(id, command, correlation=correlation))
        return Prepared(self._topic(f"{to.name}.commands"), stream.encode(), envelope)

    def send_prepared(self, prepared: Prepared, intended: int) -> Acknowledgement:
        """Queue a prepared command: the broker gets the same bytes as from ``send``."""
        topic, key, envelope = prepared
        return self._sender.send(topic, key, stamped(envelope, intended, self._clock.now()))

    def execute(
        self,
        command: Command,
        *,
        id: str | None = None,
        expected_version: int | None = None,
        deliver_at: datetime | None = None,
        service: str | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Send a command and wait for its answer.

        One that is to be delivered later is answered ``scheduled``. Raises ``Unreachable`` where
        the broker did not acknowledge it within ``timeout`` seconds, and ``TimedOut`` where no
        answer came within as many again. The command may still take effect, so send it again with
        the same id, which is safe.
        """
        self.listen(self.service_of(command, service).name)
        sent = self.send(
            command,
            id=id,
            expected_version=expected_version,
            deliver_at=deliver_at,
            service=service,
        )
        return self.answer(sent.token(timeout), timeout)

    def listen(self, service: str, *, back: bool = False) -> None:
        """Start to tail a service's events from here on; ``back``: from their start.

        Raises ``UsageError`` for a service that this run has not.
        """
        if service not in self._services:
            raise UsageError(f"no service {service!r}; known: {', '.join(self._services)}")
        if service not in self._tails:

            def begin(ends: Mapping[int, int]) -> Mapping[int, int]:
                return dict.fromkeys(ends, 0) if back else ends

            self._tails[service] = Tail(lambda: self._tail(service), begin)

    def hear(self, service: str, timeout: float) -> list[Commit[Any]]:
        """The commits that the tail brings next, waiting up to ``timeout`` seconds."""
        self.listen(service)
        self._drive()
        found = []
        for record in self._tails[service].records(timeout):
            try:
                commit = self._services[service].codec.decode_commit(record.value)
            except DecodeError:
                continue
            found.append(commit)
            token = Token(service, commit.partition, commit.offset)
            if (known := self._heard.get(token)) is None or not known.final:
                self._heard[token] = commit.answer
        while len(self._heard) > HEARD_WINDOW:
            del self._heard[next(iter(self._heard))]
        return found

    def heard(self, token: Token) -> Answer | None:
        """The last answer heard to a command; ``None``: none yet, or long ago."""
        return self._heard.get(token)

    def forget(self, token: Token) -> None:
        """Wait for a new answer to this command, whatever was heard before."""
        self._heard.pop(token, None)

    def answer(self, token: Token, timeout: float = 30.0, *, final: bool = False) -> Answer:
        """The answer to a command that was sent after ``listen``, or before anybody listened: then
        the log is read from its start.

        ``final``: of one that is scheduled or parked, the answer at its end. Raises ``TimedOut``.
        """
        if not isinstance(token, Token):
            raise UsageError(f"answer takes a token, such as sent.token() gives, got {token!r}")
        deadline = self._clock.seconds() + timeout
        self.listen(token.service, back=True)
        while (answer := self._heard.get(token)) is None or (final and not answer.final):
            if self._clock.seconds() > deadline:
                raise TimedOut(
                    f"no {'final ' if answer else ''}answer to {token} within {timeout:g} s; "
                    f"is a handler of {token.service!r} running? lab.start() or `labkit run "
                    f"handler --service {token.service} --run RUN` starts one, and `labkit status` "
                    "shows it. Sending it again with the same id is safe"
                )
            self.hear(token.service, 0.05)
        return answer

    def _check_room(self) -> None:
        """Raises ``Overloaded`` if no further command may wait for its acknowledgement."""
        waiting = self._unacknowledged
        while waiting and waiting[0].settled():
            waiting.popleft()
        if self._most and len(waiting) >= self._most:  # another partition may be ahead
            still = [delivery for delivery in waiting if not delivery.settled()]
            waiting.clear()
            waiting.extend(still)
            if len(waiting) >= self._most:
                raise Overloaded(
                    f"{len(waiting):,} commands wait for the broker to acknowledge them, and "
                    f"in_flight={self._most:,} is the most"
                )

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until every command sent so far is acknowledged."""
        self._sender.flush(timeout)

    def close(self) -> None:
        """Close the sender and the tails."""
        self._sender.close()
        for tail in self._tails.values():
            tail.close()


#: ``Expected `int`, got `float` - at `$.body.cents```.
_AT_FIELD = re.compile(r"Expected (?P<what>[^,]+?)(, got [^,]+?)? - at `\$\.body\.(?P<name>\w+)")


def _wire(envelope: Envelope[Any], to: Service) -> tuple[bytes, str]:
    """The JSON of a command and its stream, read with the eyes of the handler.

    What it cannot read would park the stream, and all that others send to it would wait.
    """
    try:
        value = encode(envelope)
        if len(value) > MAX_COMMAND_BYTES:
            raise DecodeError(f"it has {len(value)} bytes, at most {MAX_COMMAND_BYTES} fit")
        stream: str = to.codec.decode_command(value).body.stream
        if not 0 < len(stream) <= MAX_ID or stream[0] == "\0":
            raise DecodeError(
                f"stream must have 1 to {MAX_ID} characters and not begin with NUL, "
                f"got {len(stream)}: {stream[:60]!r}"
            )
    except (DecodeError, ValueError, TypeError, RecursionError) as error:  # not all can be encoded
        raise UsageError(
            f"{_field(envelope, str(error))}no handler takes {_repr.repr(envelope)}: {error}"
        ) from error
    return value, stream


def _field(envelope: Envelope[Any], error: str) -> str:
    """First of all which field of the command must be what, if the decoder says so."""
    if (found := _AT_FIELD.search(error)) is None:
        return ""
    got = _repr.repr(getattr(envelope.body, found["name"], None))
    return f"{found['name']} must be {found['what'].replace('`', '')}, got {got}: "


def _unix_ms(instant: datetime, now: int) -> int:
    """Unix milliseconds of an instant that lies ahead, and not too far."""
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise UsageError(
            f"deliver_at {instant!r} is no datetime with a time zone; use datetime.now(UTC) + ..."
        )
    at = int(instant.timestamp() * 1000)
    if not now <= at <= now + MAX_AHEAD_MS:
        raise UsageError(
            f"deliver_at {instant} is {'past' if at < now else 'too far ahead'}; "
            f"it must lie within the next {MAX_AHEAD_MS // DAY_MS} days"
        )
    return at
