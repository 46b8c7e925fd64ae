"""Rate limits by client and for all together, over ``limits``, on a clock that is handed in.

``limits.storage.MemoryStorage`` is not used: it reads the wall clock, starts a thread for each
spell of requests, and keeps an entry for every client that it ever saw.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from ipaddress import IPv6Network, ip_address

from limits import RateLimitItem
from limits.storage import MovingWindowSupport, Storage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter

from labkit.api.protection import Protection, rate
from labkit.ports.clock import Clock

#: Clients and requests that are remembered. Beyond that, those who came last the longest time ago
#: are forgotten: they begin anew, so that memory is bounded whoever comes.
MOST_CLIENTS, MOST_INSTANTS = 10_000, 1_000_000


class Windows(Storage, MovingWindowSupport):
    """The requests of each key, in memory and bounded; instants are seconds of the clock."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._instants: OrderedDict[str, deque[float]] = OrderedDict()
        self._kept = 0
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    # --- a moving window

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if self.get_moving_window(key, limit, expiry)[1] + amount > limit:
            return False
        self._instants.setdefault(key, deque()).extend([self._clock.seconds()] * amount)
        self._kept += amount
        while len(self._instants) > MOST_CLIENTS or self._kept > MOST_INSTANTS:
            self._kept -= len(self._instants.popitem(last=False)[1])
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = self._clock.seconds()
        if (instants := self._instants.get(key)) is None:
            return now, 0
        self._instants.move_to_end(key)
        while instants and instants[0] + expiry <= now:
            instants.popleft()
            self._kept -= 1
        return (instants[0] if instants else now), len(instants)

    # --- a fixed window

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        count = self.get(key) + amount
        ends = self._counts[key][1] if count > amount else self._clock.seconds() + expiry
        self._counts[key] = count, ends
        self._counts.move_to_end(key)
        if len(self._counts) > MOST_CLIENTS:
            self._counts.popitem(last=False)
        return count

    def get(self, key: str) -> int:
        count, ends = self._counts.get(key, (0, -math.inf))
        return count if self._clock.seconds() < ends else 0

    def get_expiry(self, key: str) -> float:
        return self._counts[key][1] if key in self._counts else self._clock.seconds()

    # --- what ``Storage`` asks for

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        known = len(self._instants) + len(self._counts)
        self._instants.clear()
        self._counts.clear()
        self._kept = 0
        return known

    def clear(self, key: str) -> None:
        self._kept -= len(self._instants.pop(key, ()))
        self._counts.pop(key, None)


class Rates:
    """The limits of a protection; for any thread."""

    def __init__(self, settings: Protection, clock: Clock) -> None:
        kind = MovingWindowRateLimiter if settings.window == "moving" else FixedWindowRateLimiter
        #: By mechanism; the storages are apart, so that many clients do not push out the whole.
        self._limits: dict[str, tuple[RateLimiter, RateLimitItem]] = {
            name: (kind(Windows(clock)), found)
            for name in ("limit_client", "limit")
            if (found := rate(name, getattr(settings, name))) is not None
        }
        self._clock = clock
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._limits)

    def take(self, address: str) -> tuple[str, RateLimitItem, int] | None:
        """Count a request of a client, unless it is too much for a limit: then the name of that
        limit, what it is, and the whole seconds after which it has room.

        What one limit turns away is counted by none.
        """
        client = client_of(address)
        with self._lock:
            for name, (limiter, item) in self._limits.items():
                key = client if name == "limit_client" else "all"
                if not limiter.test(item, key):
                    again = limiter.get_window_stats(item, key).reset_time
                    return name, item, max(1, math.ceil(again - self._clock.seconds()))
            for name, (limiter, item) in self._limits.items():
                limiter.hit(item, client if name == "limit_client" else "all")
        return None


def client_of(address: str) -> str:
    """Who a limit by client is for: one household has a whole IPv6 network of 64 bits."""
    try:
        found = ip_address(address)
    except ValueError:  # a socket without an address
        return address
    return str(found if found.version == 4 else IPv6Network((int(found), 64), strict=False))
