"""The settings that protect an API when too many come at once. All of them are off by default."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, get_args

import limits
from limits import RateLimitItem
from msgspec import Struct

from labkit.errors import UsageError

Window = Literal["moving", "fixed"]
WINDOWS: tuple[Window, ...] = get_args(Window)

#: A limit keeps an instant for each request of its window.
MOST_REQUESTS = 100_000
#: A breaker that stays open for longer than this has to be closed by a person.
MOST_RESET_SECONDS = 3_600.0

_ZERO = re.compile(r"(/|per)\s*0+\s*[a-z]", re.IGNORECASE)


class Protection(Struct, frozen=True, kw_only=True):
    """How an API treats requests when too many come at once.

    Args:
        limit_client: requests of one client, such as ``50/second`` or ``100 per 10 seconds``; a
            client is an IPv4 address, or an IPv6 network of 64 bits. "": no limit.
        limit: the same for all clients together.
        window: ``moving`` (in no period are there more) or ``fixed`` (a new count after each
            period: up to twice as many around its end, and one number of memory for each client).
        breaker: after this number of failures in a row, Kafka or MongoDB is asked no more, and
            requests that need it are answered 503 at once. 0: no breaker.
        breaker_reset: seconds until one request may try it again.
        in_flight: commands that were admitted here and have no answer in the log yet, at most.
            0: any number.
        reserve: the share of ``in_flight`` that is kept for urgent commands (``Priority: u=0`` to
            ``u=2``); commands with ``u=4`` to ``u=7`` get only half of ``in_flight``.
        degrade: if the views are more than this number of seconds behind, no request waits any
            more: queries show what the view holds, and commands are answered 202. 0: off.
    """

    limit_client: str = ""
    limit: str = ""
    window: Window = "moving"
    breaker: int = 0
    breaker_reset: float = 10.0
    in_flight: int = 0
    reserve: float = 0.2
    degrade: float = 0.0

    def check(self) -> Protection:
        """The same; raises ``UsageError`` that names the setting that cannot be."""
        for name in ("limit_client", "limit"):
            rate(name, getattr(self, name))
        if self.window not in WINDOWS:
            raise UsageError(f"window must be one of {', '.join(WINDOWS)}, got {self.window!r}")
        for name in ("breaker", "in_flight"):
            number: Any = getattr(self, name)
            if not isinstance(number, int) or number < 0:
                raise UsageError(f"{name} must be a whole number, 0 (off) or more, got {number!r}")
        if self.breaker and not 0 < self.breaker_reset <= MOST_RESET_SECONDS:
            raise UsageError(
                f"breaker_reset must be more than 0 and at most {MOST_RESET_SECONDS:g} seconds, "
                f"got {self.breaker_reset!r}: a breaker that nobody tries again never closes"
            )
        if not 0 <= self.reserve <= 0.5:
            raise UsageError(
                f"reserve must be a share of in_flight from 0 to 0.5, got {self.reserve!r}"
            )
        if not 0 <= self.degrade < math.inf:
            raise UsageError(
                f"degrade must be a number of seconds, 0 (off) or more, got {self.degrade!r}"
            )
        return self


def rate(name: str, text: str) -> RateLimitItem | None:
    """A rate limit, from ``50/second`` or ``100 per 10 seconds``; ``None`` from "".

    Raises ``UsageError`` that names the setting.
    """
    if not text:
        return None
    try:
        if _ZERO.search(text):  # which ``limits`` takes for one
            raise ValueError
        (found,) = limits.parse_many(text)
    except ValueError:
        raise UsageError(
            f"{name} must be one rate such as 50/second, 1000/minute or '100 per 10 seconds', "
            f"got {text[:60]!r}"
        ) from None
    if not 1 <= found.amount <= MOST_REQUESTS:
        raise UsageError(
            f"{name} must allow 1 to {MOST_REQUESTS:,} requests in its period, got {text[:60]!r}; "
            "a longer or shorter period makes another rate of it"
        )
    if found.get_expiry() > 24 * 3_600:
        raise UsageError(f"{name} must be for a day at most, got {text[:60]!r}")
    return found


#: Without any protection.
OFF = Protection()
