"""What every service's requests and answers have in common: parameters, headers, and their limits.

What is written here stands in ``/openapi.json``, and Schemathesis holds the API to it: all that
fits is taken (or refused by a rule, with 409), all else is turned away with 422.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from labkit.messages import Token
from labkit.read.freshness import Strategy
from labkit.run.jobs import KEEP_DAYS

MOST = 2**63 - 1
#: Nobody waits longer, for an answer or for freshness.
MAX_WAIT_SECONDS = 30

TOKEN = r"^[a-z][a-z0-9_]{0,30}-[0-9]{1,4}-[0-9]{1,18}$"


def _whole(value: Any) -> Any:
    """Parameters come as text: a whole number is digits, without blanks or a point."""
    if isinstance(value, str) and not value.removeprefix("-").isdecimal():
        raise ValueError("must be a whole number")
    return value


#: To be put behind the bounds, or OpenAPI would not show them.
WHOLE = BeforeValidator(_whole)


def written(token: Token) -> str:
    """``SERVICE-3-17``: service, partition and offset of the command."""
    return "-".join(str(part) for part in token)


# --- answers

Count = Annotated[int, Field(ge=0, le=MOST)]


class CommandStatus(BaseModel):
    """What has become of a command.

    ``resource`` is what it is about, ``id`` the id of that, ``version`` its version afterwards.
    """

    token: Annotated[str, Field(pattern=TOKEN)]
    command_id: str
    command: str
    status: Literal["pending", "accepted", "refused", "repeated", "parked", "scheduled", "dropped"]
    id: str
    resource: str
    version: Count | None = None
    reason: str = ""


class ProblemDetails(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str


# --- parameters

TokenInPath = Annotated[str, Path(pattern=TOKEN, description="As a command's answer gave it.")]

Seconds = Annotated[
    float | None,
    Query(ge=0, le=86_400, allow_inf_nan=False, description="End the stream after so long."),
]
Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N` (RFC 7240): wait N seconds for the answer, {MAX_WAIT_SECONDS} at "
        "most. Without it, or when they are over: 202.",
        examples=["wait=5"],
        max_length=200,
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="The version that the command is meant for, as an `ETag` gave it; just one.",
        max_length=200,
        examples=['"1"'],
    ),
]
IfNoneMatch = Annotated[
    str | None,
    Header(description="304 where one of these `ETag`s is still true.", max_length=1_000),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Send again with the same key as often as you like: it takes effect once. "
        f"Another command with the same key is refused for at least {KEEP_DAYS} days.",
        pattern=r"^[\x21-\x7e]{1,200}$",
        examples=["7d8f1c0e-17"],
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The version of the last update that was seen.", max_length=100),
]
Freshness = Annotated[
    Strategy | None,
    Query(description="`token` and `version` need the parameter of that name, and are implied."),
]
Tokens = Annotated[
    list[Annotated[str, Field(pattern=TOKEN)]] | None,
    Query(max_length=20, description="Show what these commands led to, or more."),
]
AtVersion = Annotated[
    Annotated[int, Field(ge=1, le=MOST), WHOLE] | None,
    Query(description="Show this version, or a later one."),
]
Timeout = Annotated[
    float,
    Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Seconds to wait for it."),
]
