"""How sure a figure of a few runs is: the interval by bootstrap over the runs.

A run is drawn whole, since the samples inside one run are not independent of each other. The
interval is the bias-corrected and accelerated one (BCa; Efron, "Better Bootstrap Confidence
Intervals", JASA 82, 1987), as ``scipy.stats.bootstrap`` makes it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from labkit.errors import UsageError

#: So often the runs are drawn anew. More move the ends by less than one run more would.
RESAMPLES = 9_999


def interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = median,
    seed: int = 1,
    level: float = 0.95,
) -> tuple[float, float]:
    """Low and high end of a statistic of runs, in the unit of ``values``: one value a run.

    ``statistic`` takes a sequence and gives one number. Runs that all say the same give that
    number twice. Raises ``UsageError`` for fewer than two runs, or a level not between 0 and 1.
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

    def of_each(drawn: Any, axis: int = -1) -> Any:  # the runs lie along the last axis
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

    # BCa leaves each run out in turn; a statistic that none of them moves has no acceleration.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        low, high = ends("BCa")
    return (low, high) if math.isfinite(low + high) else ends("percentile")
