"""How many workers a role should have: a decision by its time lag, with hysteresis.

The lag is above ``up_above`` for ``hold`` seconds: one more. It is below ``down_below`` for as
long: one less. Between the two bounds nothing changes, and after each change nothing does for
``cool_down`` seconds: a worker that has just joined needs time to show what it brings.

A low lag does not say that fewer workers would do. So a removal is an attempt. If a worker has to
be added again soon after it, the lag must be low for twice as long before the next removal, up to
``2 ** MOST_REGRETS`` times ``hold``; a second removal in a row ends that.

There is no clock and no process here: who measures and who starts workers is ``elastic.py``.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from msgspec import Struct

from labkit.errors import UsageError

#: A removal is regretted if a worker is added within this many times the cool-down (or the hold).
REGRET_TIMES = 6
MOST_REGRETS = 4


class Bounds(Struct, frozen=True, kw_only=True):
    """When to add and to remove workers.

    Args:
        least, most: workers of the role.
        up_above: the lag, in seconds, above which a worker is added.
        down_below: the lag, in seconds, below which one is removed.
        hold: seconds for which the lag must stay there.
        cool_down: seconds after a change in which there is no other.
    """

    least: int = 1
    most: int = 4
    up_above: float = 2.0
    down_below: float = 0.5
    hold: float = 2.0
    cool_down: float = 10.0

    def check(self) -> Bounds:
        """The same bounds; raises ``UsageError`` that names what cannot be."""
        for name in ("least", "most"):
            value: Any = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise UsageError(f"{name} must be a whole number of workers from 1, got {value!r}")
        for name in ("up_above", "down_below", "hold", "cool_down"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise UsageError(f"{name} must be a number of seconds from 0, got {value!r}")
        if self.least > self.most:
            raise UsageError(
                f"the least workers must not be more than the most, got least {self.least} and "
                f"most {self.most}: exchange them"
            )
        if self.up_above <= self.down_below:
            raise UsageError(
                f"workers are added above a longer lag than they are removed below, got up "
                f"{self.up_above:g} s and down {self.down_below:g} s: up must be greater, or the "
                "same lag would add and remove"
            )
        return self


class Autoscaler:
    """Decides for one role of one run; ``partitions`` is the ceiling.

    Each partition belongs to one worker of a group, so more workers than partitions would be idle.
    """

    def __init__(self, bounds: Bounds, partitions: int) -> None:
        self.bounds = bounds.check()
        self.most = min(bounds.most, partitions)
        self.least = min(bounds.least, partitions)
        self._above: float | None = None
        self._below: float | None = None
        self._changed = -math.inf
        self._removed = False
        self._regrets = 0

    @property
    def patience(self) -> float:
        """Seconds for which the lag must be low before a worker is removed."""
        return float(self.bounds.hold * 2**self._regrets)

    def wanted(self, now: float, lag: float, workers: int) -> int:
        """How many workers there should be; ``now`` and ``lag`` in seconds.

        It differs from ``workers`` by one at most, but for those outside ``least`` and ``most``.
        """
        bounds = self.bounds
        self._above = _since(self._above, now, lag > bounds.up_above)
        self._below = _since(self._below, now, lag < bounds.down_below)
        inside = max(self.least, min(self.most, workers))
        if inside != workers:
            self._changed, self._removed = now, False
            return inside
        if now - self._changed < bounds.cool_down:
            return workers
        if workers < self.most and self._above is not None and now - self._above >= bounds.hold:
            soon = REGRET_TIMES * max(bounds.cool_down, bounds.hold)
            if self._removed and now - self._changed <= soon:
                self._regrets = min(self._regrets + 1, MOST_REGRETS)
            self._changed, self._removed = now, False
            return workers + 1
        if workers > self.least and self._below is not None and now - self._below >= self.patience:
            if self._removed:
                self._regrets = 0
            self._changed, self._removed = now, True
            return workers - 1
        return workers


def _since(before: float | None, now: float, holds: bool) -> float | None:
    """Since when something holds, without a break."""
    return (now if before is None else before) if holds else None
