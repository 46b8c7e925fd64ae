"""The messages and their wire form: one JSON object a record, the Kafka key is the stream.

A *command* asks, in the imperative; an *event* says what happened, in the past tense. Both are
frozen structs whose name travels with them as ``type``. On the commands topic a command rides in
an :class:`Envelope`; handling it leaves exactly one :class:`Commit` in the events partition that
corresponds to its own. All that later readers do (views, answers, duplicate checks, fencing)
follows from commits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, structs

from labkit.errors import DecodeError, said


class Message(Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The root of commands and events; the class name is the ``type`` on the wire."""


class Command(Message, frozen=True):
    """What somebody asks for."""

    @property
    def stream(self) -> str:
        """The id of the stream (the aggregate) that decides, and the Kafka key: the first field."""
        return getattr(self, self.__struct_fields__[0])  # type: ignore[no-any-return]

    def validate(self) -> None:
        """What can be said of the command alone, before any state; raises ``Refused``."""


class ReleaseParked(Command, frozen=True):
    """Handle the commands that a parked stream holds, in order; with ``drop``, without the first.

    Every service takes it: a stream's owner handles it in the order of the log, like any command.
    ``head`` is the offset of the first one, as far as the sender knows: with another one there, it
    is refused, so that nobody drops what he has not seen.
    """

    id: str
    drop: bool = False
    head: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class Event(Message, frozen=True):
    """What happened, with every field that a reader needs."""


class State(Struct, frozen=True, gc=False):
    """What a service's decisions need to know of a stream."""


#: From the events of an older schema to those of today's.
Upcasts = Mapping[type[Event], Callable[[Any], Event]]

#: The decisions of a service: (state, command) -> an event, several, none; or ``Refused``.
Decisions = Mapping[type[Any], Callable[[Any, Any], "Event | Sequence[Event] | None"]]

#: A document of a store, by its fields.
Document = dict[str, Any]

C = TypeVar("C")
E = TypeVar("E")
F = TypeVar("F")

#: What MongoDB can hold; a greater one is not a message of this schema.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: Ids are remembered with every stream, so they are short.
MAX_ID = 200
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]
#: A command with its envelope, in bytes: what Kafka takes by default, less room for its headers.
MAX_COMMAND_BYTES = 1_000_000

Outcome = Literal["accepted", "refused", "repeated", "parked", "scheduled", "dropped"]


class Token(NamedTuple):
    """Where an acknowledged command stands: enough to wait until a view has seen it."""

    service: str
    partition: int
    offset: int


class Answer(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the sender of a command is told.

    ``version`` is the stream's version after the command (for a refusal: unchanged).
    """

    outcome: Outcome
    version: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.outcome}: {self.reason}"
        return f"{self.outcome} as version {self.version}" if self.accepted else self.outcome

    @property
    def accepted(self) -> bool:
        """Whether the command took effect."""
        return self.outcome == "accepted"

    @property
    def final(self) -> bool:
        """Whether the command is done with; a scheduled or parked one is still to come."""
        return self.outcome not in ("scheduled", "parked")


class Envelope(Struct, Generic[C], frozen=True, omit_defaults=True, gc=False):
    """A command on the wire.

    ``deliver_at`` is an instant of the calendar (Unix milliseconds); ``correlation`` comes back
    with the commit, so that a process knows what an answer is about. ``intended`` and ``sent`` are
    monotonic nanoseconds of one host.
    """

    id: Id
    body: C
    expected_version: Count | None = None
    deliver_at: Count | None = None
    correlation: Annotated[str, msgspec.Meta(max_length=MAX_ID)] = ""
    intended: Count = 0
    sent: Count = 0


class Commit(Struct, Generic[E], frozen=True, omit_defaults=True, gc=False):
    """What one command led to; the only kind of record on an events topic.

    ``partition`` and ``offset`` are those of the command. Versions count a stream's events from 1;
    ``first`` is always the version before the command plus one, and ``last`` is ``first - 1`` where
    nothing happened, so one check (``first == known + 1``) fences every commit of a zombie.

    ``at`` is when it was decided and ``due`` when a command that waits is tried again, both in Unix
    milliseconds; ``digest`` tells whether a repeat has the same body; ``release`` says that a
    parked stream goes on, and how. A command that was scheduled or parked has one more commit at
    its end.
    """

    stream: str
    id: str
    partition: int
    offset: int
    outcome: Outcome
    first: int
    last: int
    events: tuple[E, ...] = ()
    reason: str = ""
    repeats: Answer | None = None
    correlation: str = ""
    digest: int = 0
    release: Literal["", "replay", "drop"] = ""
    at: int = 0
    due: int = 0
    intended: int = 0
    sent: int = 0
    polled: int = 0
    decided: int = 0

    @property
    def answer(self) -> Answer:
        """What the sender is told: a repeat gets the first answer."""
        return self.repeats or Answer(self.outcome, self.last, self.reason)

    @property
    def final(self) -> bool:
        """Whether the command is done with; a scheduled or parked one is still to come."""
        return self.outcome not in ("scheduled", "parked")


_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """The JSON of a message, or of an answer: documents, pages, numbers."""
    return _encoder.encode(value)


def stamped(envelope: bytes, intended: int, sent: int) -> bytes:
    """The JSON of an envelope that was encoded without its two instants, with them."""
    return b'%b,"intended":%d,"sent":%d}' % (envelope[:-1], intended, sent)


class Codec:
    """The strict, typed decoder of one service.

    ``commands`` and ``events`` are the unions of its message types. ``upcasts`` names the events of
    older schemas that may stand in the log, and makes today's of them on the way in, so that nobody
    further on knows that there ever was another schema. Every ``decode_*`` raises
    :class:`DecodeError` and nothing else.
    """

    def __init__(self, commands: Any, events: Any, upcasts: Upcasts | None = None) -> None:
        self._upcasts = upcasts or {}
        for old in self._upcasts:
            events = events | old
        self._commands = msgspec.json.Decoder(Envelope[commands | ReleaseParked])
        self._commits = msgspec.json.Decoder(Commit[events])
        self._outlines = msgspec.json.Decoder(Commit[msgspec.Raw])

    def decode_command(self, value: bytes) -> Envelope[Any]:
        """An envelope from a commands topic."""
        return decoded(self._commands, value)  # type: ignore[no-any-return]

    def decode_commit(self, value: bytes) -> Commit[Any]:
        """A commit from an events topic, with today's events."""
        commit: Commit[Any] = decoded(self._commits, value)
        for event in commit.events:
            if type(event) in self._upcasts:
                try:
                    today = tuple(map(self._today, commit.events))
                except Exception as bug:
                    raise DecodeError(f"no upcast: {said(bug)}") from bug
                return structs.replace(commit, events=today)
        return commit

    def read_commit(self, value: bytes) -> tuple[Commit[Any] | None, str]:
        """A commit, whatever the topic holds; ``None``: it is none.

        Where this code does not know its events (newer ones, for example), they are raw, and the
        text says why.
        """
        try:
            return self.decode_commit(value), ""
        except DecodeError as error:
            with suppress(DecodeError):
                return decoded(self._outlines, value), str(error)
        return None, ""

    def _today(self, event: Event) -> Event:
        """Step by step, if there was more than one change."""
        while (upcast := self._upcasts.get(type(event))) is not None:
            event = upcast(event)
        return event


def decoded(decoder: msgspec.json.Decoder[Any], value: bytes) -> Any:
    """What a decoder makes of a record; raises ``DecodeError`` and nothing else."""
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a message of this schema: {error}") from error


class _Named(Struct):
    id: str


_named = msgspec.json.Decoder(_Named)


def command_id(envelope: bytes) -> str:
    """The id of a command, without a look at the rest; empty where it has none."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _named.decode(envelope).id
    return ""


def digest(command: Command) -> int:
    """What tells two bodies under one command id apart (CRC-32 of the canonical JSON)."""
    return zlib.crc32(_encoder.encode(command))
