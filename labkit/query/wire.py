"""The wire form of queries and their answers: one JSON object a record, on two topics a service."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from labkit import errors
from labkit.errors import LabkitError
from labkit.messages import Count, Id, decoded

F = TypeVar("F")
#: Seconds that a subscription lasts at most after its requester was last heard.
MAX_LEASE = 600.0

#: What a query is about: an answer once, or also its updates as long as somebody renews the lease.
Purpose = Literal["ask", "subscribe", "unsubscribe"]


class QueryEnvelope(Struct, Generic[F], frozen=True, omit_defaults=True):
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


class ReplyTo(Struct):
    """The id and reply partition of an undecodable query."""

    id: Id
    reply: Count


_results = msgspec.json.Decoder(Result)
_reply_to = msgspec.json.Decoder(ReplyTo)


def decode_result(value: bytes) -> Result:
    """A result; raises ``DecodeError``."""
    return decoded(_results, value)  # type: ignore[no-any-return]


def decode_reply_to(value: bytes) -> ReplyTo:
    """Where the refusal of a query goes; raises ``DecodeError``."""
    return decoded(_reply_to, value)  # type: ignore[no-any-return]


def failed(query: QueryEnvelope[Any], error: Exception, polled: int) -> Result:
    """Errors of ours go back as what they are; of others, only the handler's log knows."""
    text = str(error) if isinstance(error, LabkitError) else f"the handler has a bug: {error!r}"
    # A class that a service has derived goes back as the nearest one that every requester has.
    names = (kind.__name__ for kind in type(error).__mro__ if kind in vars(errors).values())
    return Result(
        query.id,
        False,
        error=next(names) if isinstance(error, LabkitError) else "StackError",
        text=text[:2_000].encode(errors="backslashreplace").decode(),
        round=query.round,
        sent=query.sent,
        polled=polled,
    )
