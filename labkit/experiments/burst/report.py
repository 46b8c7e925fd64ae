"""What all bursts of a bench say together: a median and an interval for each figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from labkit.experiments.intervals import interval_if_any

#: The figures of which intervals are given.
SUMMED = (
    *("commands", "accepted", "turned_away", "urgent_away", "unknown", "lost"),
    *("told_p50_ms", "told_p99_ms", "done_p50_ms", "done_p99_ms", "away_p99_ms"),
    *("reads", "reads_turned_away", "reads_failed", "reads_old", "read_p99_ms"),
    *("most_backlog", "backlog", "predicted_s", "measured_s", "worked_per_second"),
)


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the runs of one peak under one mechanism."""
    return {name: summed([run[name] for run in runs]) for name in SUMMED}


def summed(values: Sequence[float]) -> dict[str, Any]:
    """The median of the runs and its interval; a run without a figure (NaN, or without an end) is
    counted in ``without``."""
    known = [value for value in values if math.isfinite(value)]
    ends = interval_if_any(known)
    return {
        "median": median(known) if known else math.nan,
        "interval": None if math.isnan(ends.level) else [ends.low, ends.high],
        "level": None if math.isnan(ends.level) else ends.level,
        "without": len(values) - len(known),
    }
