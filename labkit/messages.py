"""The messages and their wire form: one JSON object a record, the Kafka key is the stream.

A *command* asks, in the imperative; an *event* says what happened, in the past tense. Both are
frozen structs whose name travels with them as ``type``. On the commands topic a command rides in
an :class:`Envelope`; handling it leaves exactly one :class:`Commit` in the events partition that
corresponds to its own. All that later readers do (views, answers, duplicate checks, fencing)
follows from commits.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from labkit.errors import DecodeError


class Message(Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The root of commands and events; the class name is the ``type`` on the wire."""


class Command(Message, frozen=True):
    """What somebody asks for."""

    @property
    def stream(self) -> str:
        """The id of the stream (the aggregate) that decides; also the Kafka key."""
        raise NotImplementedError


class Event(Message, frozen=True):
    """What happened, with every field that a reader needs."""


#: The decisions of a context: (state, command) -> events, or ``Refused``.
Decisions = Mapping[type[Command], Callable[..., tuple[Event, ...]]]

C = TypeVar("C")
E = TypeVar("E")

#: What MongoDB can hold; a greater one is not a message of this schema.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: Ids are remembered with every stream, so they are short.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

Outcome = Literal["accepted", "refused", "repeated", "parked"]


class Token(NamedTuple):
    """Where an acknowledged command stands: enough to wait until a view has seen it."""

    context: str
    partition: int
    offset: int


class Answer(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the sender of a command is told.

    ``version`` is the stream's version after the command (for a refusal: unchanged).
    """

    outcome: Outcome
    version: int
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the command took effect."""
        return self.outcome == "accepted"


class Envelope(Struct, Generic[C], frozen=True, omit_defaults=True):
    """A command on the wire. Instants are monotonic nanoseconds of one host."""

    id: Id
    body: C
    expected_version: Count | None = None
    intended: Count = 0
    sent: Count = 0


class Commit(Struct, Generic[E], frozen=True, omit_defaults=True):
    """What one command led to; the only kind of record on an events topic.

    ``partition`` and ``offset`` are those of the command. Versions count a stream's events from 1;
    ``first`` is always the version before the command plus one, and ``last`` is ``first - 1`` where
    nothing happened, so one check (``first == known + 1``) fences every commit of a zombie.
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
    intended: int = 0
    sent: int = 0
    polled: int = 0
    decided: int = 0

    @property
    def answer(self) -> Answer:
        """What the sender is told: a repeat gets the first answer."""
        return self.repeats or Answer(self.outcome, self.last, self.reason)


_encoder = msgspec.json.Encoder()


def encode(message: Envelope[Any] | Commit[Any]) -> bytes:
    """The JSON of an envelope or a commit."""
    return _encoder.encode(message)


class Codec:
    """The strict, typed decoder of one context.

    ``commands`` and ``events`` are the unions of its message types. Every ``decode_*`` raises
    :class:`DecodeError` and nothing else.
    """

    def __init__(self, commands: Any, events: Any) -> None:
        self._commands = msgspec.json.Decoder(Envelope[commands])
        self._commits = msgspec.json.Decoder(Commit[events])

    def decode_command(self, value: bytes) -> Envelope[Any]:
        """An envelope from a commands topic."""
        return _decode(self._commands, value)  # type: ignore[no-any-return]

    def decode_commit(self, value: bytes) -> Commit[Any]:
        """A commit from an events topic."""
        return _decode(self._commits, value)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes) -> Any:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a message of this schema: {error}") from error


def new_id() -> str:
    """A command id that nobody else has."""
    return uuid.uuid4().hex
