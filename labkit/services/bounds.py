"""What any value of a command may be: the checks that need no state, for ``Command.validate``.

Each raises ``Refused`` with the value. A NaN is within no bounds, and neither is a number that
MongoDB cannot hold.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from labkit.errors import Refused

MAX_CENTS = 10**12  #: Ten thousand million of the currency: anything above is a mistake.
MAX_QUANTITY = 10**6
#: Bytes of an id. Thousands of ids are kept in one state document, and a process makes command ids
#: of them, which are bounded too (``messages.MAX_ID``).
MAX_KEY = 64
#: Characters of a name or a reason.
MAX_TEXT = 200


def _text(least: int, most: int, example: str) -> Meta:
    """Limits that OpenAPI shows. The rules enforce them: a bad value is refused with a reason and
    does not park its stream."""
    limits = {"minLength": least, "maxLength": most, "pattern": r"^[^\x00]*$"}
    return Meta(extra_json_schema=limits, examples=[example])


def _whole(least: int, most: int, example: int) -> Meta:
    return Meta(extra_json_schema={"minimum": least, "maximum": most}, examples=[example])


OrderId = Annotated[str, _text(1, MAX_KEY, "o1")]
CustomerId = Annotated[str, _text(1, MAX_KEY, "ann")]
ProductId = Annotated[str, _text(1, MAX_KEY, "cd")]
AccountId = Annotated[str, _text(1, MAX_KEY, "a1")]
TransferId = Annotated[str, _text(1, MAX_KEY, "t1")]
Name = Annotated[str, _text(1, MAX_TEXT, "Ann")]
Reason = Annotated[str, _text(0, MAX_TEXT, "changed my mind")]
Cents = Annotated[int, _whole(0, MAX_CENTS, 1_499)]
Amount = Annotated[int, _whole(1, MAX_CENTS, 500)]
Pieces = Annotated[int, _whole(1, MAX_QUANTITY, 2)]
Difference = Annotated[int, _whole(-MAX_QUANTITY, MAX_QUANTITY, -1)]
Day = Annotated[str, Meta(extra_json_schema={"format": "date"}, examples=["1998-06-30"])]


def check_id(name: str, value: str) -> None:
    """1 to ``MAX_KEY`` bytes of UTF-8; no NUL, which ends a key in BSON."""
    if not value:
        raise Refused(f"{name} is needed, got an empty one")
    size = len(value) if value.isascii() else len(value.encode())  # Python knows the former
    if size > MAX_KEY or "\0" in value:
        raise Refused(f"{name} must have at most {MAX_KEY} bytes and no NUL, got {value!r}")


def check_within(name: str, value: int, low: int, high: int) -> None:
    """From ``low`` to ``high``, both included."""
    if not low <= value <= high:
        raise Refused(f"{name} must be between {low} and {high}, got {value}")
