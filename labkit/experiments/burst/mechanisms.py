"""The mechanisms of protection that are put under a peak, one at a time and all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from labkit.api.protection import OFF, Protection
from labkit.errors import UsageError

#: The queue holds this many seconds of work.
QUEUE_SECONDS = 1.0
#: A client may send this share of what the workers do, and all together a little more than that.
CLIENT_SHARE, WHOLE_SHARE = 0.5, 1.25
DEGRADE_SECONDS = 0.5


class Mechanism(Struct, frozen=True):
    """``protection`` is made from what the workers do, in commands a second. ``urgencies``: the
    clients say how urgent their commands are."""

    name: str
    protection: Callable[[float], Protection]
    urgencies: bool = False


def _rate(calls: float) -> str:
    return f"{max(1, math.ceil(calls))}/second"


def _client(capacity: float) -> Protection:
    return Protection(limit_client=_rate(CLIENT_SHARE * capacity))


def _whole(capacity: float) -> Protection:
    return Protection(limit=_rate(WHOLE_SHARE * capacity))


def _breaker(capacity: float) -> Protection:
    return Protection(breaker=5, breaker_reset=2.0)


def _queue(capacity: float) -> Protection:
    return Protection(in_flight=max(5, round(QUEUE_SECONDS * capacity)))


def _degrade(capacity: float) -> Protection:
    return Protection(degrade=DEGRADE_SECONDS)


def _together(capacity: float) -> Protection:
    parts = [make(capacity) for make in (_client, _whole, _breaker, _queue, _degrade)]
    changed = {
        name: value
        for part in parts
        for name, value in structs.asdict(part).items()
        if value != getattr(OFF, name)
    }
    return Protection(**changed)


MECHANISMS = {
    each.name: each
    for each in (
        Mechanism("none", lambda _: OFF),
        Mechanism("limit by client", _client),
        Mechanism("limit of all", _whole),
        Mechanism("breaker", _breaker),
        Mechanism("bounded queue", _queue),
        Mechanism("priorities", _queue, urgencies=True),
        Mechanism("degradation", _degrade),
        Mechanism("together", _together, urgencies=True),
    )
}


def chosen(names: Sequence[str]) -> list[Mechanism]:
    """The mechanisms of these names, all without names, "none" first: the others are compared with
    it. Raises ``UsageError``."""
    if unknown := [name for name in names if name not in MECHANISMS]:
        raise UsageError(f"--only takes {', '.join(MECHANISMS)}, got {unknown[0]!r}")
    return [m for n, m in MECHANISMS.items() if not names or n in names or n == "none"]
