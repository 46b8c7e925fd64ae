"""What any value of a command may be: the checks that need no state, for ``Command.validate``.

Each raises ``Refused`` with the value. A NaN is within no bounds, and neither is a number that
MongoDB cannot hold.
"""

from __future__ import annotations

from labkit.errors import Refused

MAX_CENTS = 10**12  #: Ten thousand million of the currency: anything above is a mistake.
MAX_QUANTITY = 10**6
#: Bytes of an id. Thousands of ids are kept in one state document, and a process makes command ids
#: of them, which are bounded too (``messages.MAX_ID``).
MAX_KEY = 64


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
