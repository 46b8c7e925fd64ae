"""Bootstrap intervals over a few runs.

Whole runs are resampled, since the samples within a run are not independent. The interval is the
bias-corrected and accelerated one (BCa; Efron, "Better Bootstrap Confidence Intervals", JASA 82,
1987), as ``scipy.stats.bootstrap`` computes it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from labkit.errors import UsageError

#: Bootstrap samples. More would move the ends by less than one additional run does.
RESAMPLES = 9_999


def interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = median,
    seed: int = 1,
    level: float = 0.95,
) -> tuple[float, float]:
    """The ends of the interval of a statistic, in the unit of ``values``: one value for each run.

    Equal values give that value twice. Raises ``UsageError`` for fewer than two runs, for a value
    that is not finite, or for a level not between 0 and 1.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    runs = [float(value) for value in values]
    if len(runs) < 2:
        raise UsageError(f"an interval needs at least 2 runs, got {len(runs)}; run it again")
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval must lie between 0 and 1, got {level!r}")
    if not all(math.isfinite(value) for value in runs):
        raise UsageError(f"an interval needs a finite number from each run, got {runs}")
    if len(set(runs)) == 1:
        return statistic(runs), statistic(runs)

    def of_each(drawn: Any, axis: int = -1) -> Any:  # the runs are along the last axis
        rows = drawn.reshape(-1, drawn.shape[-1]).tolist()
        return np.array([statistic(row) for row in rows]).reshape(drawn.shape[:-1])

    def ends(method: str) -> tuple[float, float]:
        found = bootstrap(
            (runs,),
            of_each,
            n_resamples=RESAMPLES,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    # BCa leaves out each run in turn; if that never changes the statistic, it has no acceleration.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        low, high = ends("BCa")
    return (low, high) if math.isfinite(low + high) else ends("percentile")
