"""The messages and their wire form: one JSON object a record, the Kafka key is the stream.

A *command* asks, in the imperative; an *event* says what happened, in the past tense. Both are
frozen structs whose name travels with them as ``type``. On the commands topic a command rides in
an :class:`Envelope`; handling it leaves exactly one :class:`Commit` in the events partition that
corresponds to its own. All that later readers do (views, answers, duplicate checks, fencing)
follows from commits.

A *query* asks what the views hold, and a *result* answers it, on two topics of their own.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, structs

from labkit.errors import DecodeError


class Message(Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The root of commands and events; the class name is the ``type`` on the wire."""


class Command(Message, frozen=True):
    """What somebody asks for."""

    @property
    def stream(self) -> str:
        """The id of the stream (the aggregate) that decides; also the Kafka key."""
        raise NotImplementedError

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

    @property
    def stream(self) -> str:
        """The parked stream."""
        return self.id


class Event(Message, frozen=True):
    """What happened, with every field that a reader needs."""


#: From the events of an older schema to those of today's.
Upcasts = Mapping[type[Event], Callable[[Any], Event]]

#: The decisions of a service: (state, command) -> events, or ``Refused``.
Decisions = Mapping[type[Command], Callable[..., tuple[Event, ...]]]

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
#: Seconds that a subscription lasts at most after its requester was last heard.
MAX_LEASE = 600.0

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

    @property
    def accepted(self) -> bool:
        """Whether the command took effect."""
        return self.outcome == "accepted"

    @property
    def final(self) -> bool:
        """Whether the command is done with; a scheduled or parked one is still to come."""
        return self.outcome not in ("scheduled", "parked")


class Envelope(Struct, Generic[C], frozen=True, omit_defaults=True):
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


class Commit(Struct, Generic[E], frozen=True, omit_defaults=True):
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


#: What a query is about: an answer once, or also its updates as long as somebody renews the lease.
Purpose = Literal["ask", "subscribe", "unsubscribe"]


class Query(Struct, Generic[F], frozen=True, omit_defaults=True):
    """A question on the wire: a name and its conditions, as somebody would write them.

    Its answer goes to the partition ``reply`` of the results. ``fresh`` is how fresh that must be;
    after ``deadline`` (Unix milliseconds; 0: none) nobody waits for it any more. A subscription
    holds for ``lease`` seconds after each time that it is sent; ``round`` counts those, and comes
    back with the answers. ``sent`` is monotonic nanoseconds of the requester's host.
    """

    id: Id
    name: str
    reply: Count
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    fresh: F | None = None
    purpose: Purpose = "ask"
    lease: Annotated[float, msgspec.Meta(gt=0, le=MAX_LEASE)] = 10.0
    round: Count = 0
    deadline: Count = 0
    sent: Count = 0


class Result(Struct, frozen=True, omit_defaults=True):
    """What a query led to, under its id: a value, or an error of ``errors.py`` by its name.

    ``cached``: the answer was held, not read. ``sent`` is the requester's, ``polled`` and
    ``answered`` the handler's: monotonic nanoseconds, each of one host.
    """

    id: Id
    ok: bool
    value: Any = None
    error: str = ""
    text: str = ""
    round: int = 0
    cached: bool = False
    sent: int = 0
    polled: int = 0
    answered: int = 0


class Return(Struct):
    """What of a query that cannot be understood tells where its refusal goes to."""

    id: Id
    reply: Count


def _plain(value: Any) -> int:
    """MongoDB's large numbers are of a type of their own."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"no answer holds {value!r}")


_encoder = msgspec.json.Encoder()
_values = msgspec.json.Encoder(enc_hook=_plain)
_results = msgspec.json.Decoder(Result)
_returns = msgspec.json.Decoder(Return)


def encode(message: Envelope[Any] | Commit[Any] | Query[Any] | Result) -> bytes:
    """The JSON of a message."""
    return _encoder.encode(message)


def encode_value(value: Any) -> bytes:
    """The JSON of an answer: documents, pages, numbers."""
    return _values.encode(value)


def decode_result(value: bytes) -> Result:
    """A result; raises ``DecodeError``."""
    return _decode(_results, value)  # type: ignore[no-any-return]


def decode_return(value: bytes) -> Return:
    """Where the refusal of a query goes to; raises ``DecodeError``."""
    return _decode(_returns, value)  # type: ignore[no-any-return]


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

    def decode_command(self, value: bytes) -> Envelope[Any]:
        """An envelope from a commands topic."""
        return _decode(self._commands, value)  # type: ignore[no-any-return]

    def decode_commit(self, value: bytes) -> Commit[Any]:
        """A commit from an events topic, with today's events."""
        commit: Commit[Any] = _decode(self._commits, value)
        for event in commit.events:
            if type(event) in self._upcasts:
                today = tuple(map(self._today, commit.events))
                return structs.replace(commit, events=today)
        return commit

    def _today(self, event: Event) -> Event:
        """Step by step, if there was more than one change."""
        while (upcast := self._upcasts.get(type(event))) is not None:
            event = upcast(event)
        return event


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes) -> Any:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a message of this schema: {error}") from error


def digest(command: Command) -> int:
    """What tells two bodies under one command id apart (CRC-32 of the canonical JSON)."""
    return zlib.crc32(_encoder.encode(command))


def new_id() -> str:
    """A command id that nobody else has."""
    return uuid.uuid4().hex
