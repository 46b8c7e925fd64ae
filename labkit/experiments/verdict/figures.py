"""A figure with its interval: one that is known, or that of a count of tries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from labkit.errors import UsageError

#: Of the interval of a share.
CONFIDENCE = 0.95


class Figure(Struct, frozen=True):
    """``value`` lies from ``low`` to ``high``; ``unit`` is "" for a ratio."""

    value: float
    low: float
    high: float
    unit: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.low == self.high:  # it was counted, not measured
            return f"{_short(self.value)}{unit}"
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)}){unit}"


def measured(value: float, ends: Sequence[float | None] | None, unit: str = "") -> Figure:
    """A figure whose interval is known. Raises ``UsageError`` where it has none."""
    low, high = (*(ends or ()), None, None)[:2]
    if low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        raise UsageError(f"a verdict needs a figure with an interval, got {value} {ends}")
    return Figure(value, low, high, unit)


def share(count: int, tries: int, unit: str = "%") -> Figure:
    """``count`` of ``tries`` in percent, with the exact interval.

    C. J. Clopper and E. S. Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 26,
    1934. Raises ``UsageError`` for no tries.
    """
    from scipy.stats import binomtest

    if not 0 <= count <= tries or not tries:
        raise UsageError(f"a share needs tries, got {count} of {tries}")
    low, high = binomtest(count, tries).proportion_ci(CONFIDENCE, method="exact")
    return Figure(100 * count / tries, 100 * float(low), 100 * float(high), unit)


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits else f"{value:,.0f}"
