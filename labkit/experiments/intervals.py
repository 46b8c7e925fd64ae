"""What a few runs can say: rates, the interval of a median, and whether they were long enough.

The ends of an interval are runs. Of each run, whatever its distribution, the chance to lie below
the true median is a half, as with a coin. So the true median lies between the k-th smallest and the
k-th largest of ``n`` runs unless fewer than k of them lie on one side of it: with a confidence of
1 - 2 * P(Binomial(n, 1/2) < k). For the range, k = 1, this is 1 - 2^(1-n): 93.75 % for five runs,
so 95 % takes six (W. J. Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.2).

Runs count, not the samples within a run, which are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from labkit.errors import UsageError

#: The confidence that is sought; fewer than six runs give less.
CONFIDENCE = 0.95
#: A rate that was measured for a shorter time depends on the warm-up.
LEAST_SECONDS = 5.0


class Interval(NamedTuple):
    """``level`` is the confidence that the true median lies from ``low`` to ``high``."""

    low: float
    high: float
    level: float


#: What fewer than two runs have.
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


def interval(values: Sequence[float]) -> Interval:
    """The narrowest interval of the median with ``CONFIDENCE``, or the range if that has less.

    ``values``: one for each run. Raises ``UsageError`` for fewer than two runs and for a value that
    is not finite.
    """
    runs = sorted(float(value) for value in values)
    if len(runs) < 2:
        raise UsageError(f"an interval needs at least 2 runs, got {len(runs)}; run it again")
    if not all(math.isfinite(value) for value in runs):
        raise UsageError(f"an interval needs a finite number from each run, got {runs}")
    k = 1
    while 2 * k < len(runs) and _confidence(len(runs), k + 1) >= CONFIDENCE:
        k += 1
    return Interval(runs[k - 1], runs[-k], _confidence(len(runs), k))


def interval_if_any(values: Sequence[float]) -> Interval:
    """The same of the runs with a figure; ``NO_INTERVAL`` for fewer than two of them."""
    finite = [value for value in values if math.isfinite(value)]
    return interval(finite) if len(finite) > 1 else NO_INTERVAL


def _confidence(runs: int, k: int) -> float:
    """That the true median lies between the k-th smallest and the k-th largest run."""
    return 1 - 2.0 ** (1 - runs) * sum(math.comb(runs, below) for below in range(k))


def quotient(value: float, by: float) -> float:
    """A rate or a ratio; NaN, which is ``null`` in a result, if there is nothing to divide by: no
    time passed between two looks of the clock, say."""
    return value / by if by else math.nan


def too_short(seconds: float) -> str:
    """Why a rate that was measured for so long must not be compared; "": it may be."""
    if seconds >= LEAST_SECONDS:
        return ""
    return (
        f"too short to compare: measured for {seconds:.2g} s, and below {LEAST_SECONDS:g} s the "
        "warm-up decides"
    )
