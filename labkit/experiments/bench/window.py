"""The part of a drain that is measured: two looks, and the rate between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from labkit.experiments.bench.observer import Observation
from labkit.experiments.intervals import quotient

#: The share of the commands that must be through before the measurement starts.
WARM_UP = 0.1


class MeasuredWindow(Struct, frozen=True):
    """Work is counted from ``first`` to ``last``; ``steady``: see ``window``."""

    first: Observation
    last: Observation
    steady: bool

    @property
    def seconds(self) -> float:
        return (self.last.at - self.first.at) / 1e9


def window(looks: Sequence[Observation], total: int, went: int, what: str) -> MeasuredWindow | None:
    """The window of a count (``committed`` or ``visible``); ``None`` if it never reaches ``total``.

    It starts at a look at which the count has just risen; otherwise most of the batch under way
    would count as well. A window that would hold less than half of the commands starts earlier, and
    is not steady. ``went`` is the instant at which the workers were released.
    """
    counts = [getattr(look, what) for look in looks]
    last = next((n for n, count in enumerate(counts) if count >= total), None)
    if last is None:
        return None
    risen = [n for n in range(1, last) if counts[n] > max(counts[n - 1], WARM_UP * total - 1)]
    steady = [n for n in risen if looks[n].at >= went and counts[n] <= total / 2]
    if steady:
        return MeasuredWindow(looks[steady[0]], looks[last], True)
    return MeasuredWindow(looks[risen[0] if risen else max(0, last - 1)], looks[last], False)


def rate(found: MeasuredWindow | None, what: str) -> float:
    """Commands per second; NaN without a window."""
    if found is None:
        return math.nan
    return quotient(getattr(found.last, what) - getattr(found.first, what), found.seconds)
