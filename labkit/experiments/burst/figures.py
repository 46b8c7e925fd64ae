"""The figures of one burst, from a row for each call. Pure.

The *backlog* is the number of commands that are due and neither visible nor turned away: those in
the clients, in the API, in the topic and on the way to the view. It is what a user waits for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labkit.experiments.burst.timetable import URGENCIES, Burst
from labkit.experiments.intervals import quotient
from labkit.experiments.load import steady

#: The grid of the backlog over time.
GRID_SECONDS = 0.05
#: The first part of the time before the peak is warm-up: connections are made.
WARM_UP = 0.5
#: The middle of a heap, in which the rate of the workers is measured.
MIDDLE = (0.2, 0.8)


def backlog(rows: pd.DataFrame) -> pd.DataFrame:
    """``seconds`` from the start, and the ``backlog`` at that time.

    ``rows`` as of ``bench.rows_of``. A command that was never visible stays in the backlog.
    """
    commands = rows[~rows["read"]]
    due = np.sort(commands["intended"].to_numpy(float))
    taken = commands["outcome"] == "taken"
    gone = np.sort(commands["visible"].where(taken, commands["told"]).dropna().to_numpy(float))
    last = max(due[-1], gone[-1]) if len(gone) else due[-1]
    at = np.arange(0.0, last + 4 * GRID_SECONDS, GRID_SECONDS)
    count = np.searchsorted(due, at, "right") - np.searchsorted(gone, at, "right")
    return pd.DataFrame({"seconds": at, "backlog": count})


def capacity(visible: NDArray[np.float64]) -> float:
    """Commands a second over the middle of a heap; ``visible`` in seconds, NaN for never."""
    at = np.sort(visible[~np.isnan(visible)])
    if len(at) < 10:
        return float("nan")
    low, high = (int(share * (len(at) - 1)) for share in MIDDLE)
    # Whole batches become visible at once: from the first of one to the first of another.
    first, last = (int(np.searchsorted(at, at[place])) for place in (low, high))
    return quotient(last - first, float(at[last] - at[first]))


def drained(series: pd.DataFrame, burst: Burst, able: float, arrivals: float) -> dict[str, float]:
    """The backlog at the end of the peak, and how long it takes until it is a usual one again:
    predicted as backlog / (capacity - arrivals), and measured. Seconds; NaN: it never was.

    ``able`` and ``arrivals`` are in commands a second. ``worked_per_second`` is what was done while
    the backlog fell: where it is less than ``able``, the machine was busy with the peak itself, and
    the prediction is too short. A usual backlog is the highest one before
    the peak.
    """
    at, count = (series[name].to_numpy(float) for name in ("seconds", "backlog"))
    before = count[(at >= WARM_UP * burst.before) & (at < burst.begins)]
    usual = float(before.max()) if len(before) else 0.0
    ended = float(np.interp(burst.ends, at, count))
    after = at >= burst.ends
    low = np.flatnonzero(after & (count <= max(usual, 1.0)))
    took = float(at[low[0]] - burst.ends) if len(low) else float("nan")
    left = float(count[low[0]]) if len(low) else float("nan")
    spare = able - arrivals
    return {
        "begins_s": burst.begins,
        "ends_s": burst.ends,
        "usual_backlog": usual,
        "backlog": ended,
        "most_backlog": float(count.max()),
        "predicted_s": ended / spare if spare > 0 else float("nan"),
        "measured_s": took,
        "worked_per_second": quotient(ended - left, took) + arrivals,
    }


def told(rows: pd.DataFrame) -> dict[str, Any]:
    """What the clients were told, and when: counts, and percentiles in ms from the intended
    instant.

    ``urgent_away``: the share of the urgent commands that were turned away. ``done``: until the
    answer of a command that was taken was in the log.
    """
    commands, reads = rows[~rows["read"]], rows[rows["read"]]
    taken, away = (commands[commands["outcome"] == name] for name in ("taken", "turned away"))
    answered = reads[reads["outcome"] == "taken"]
    by_urgency = {
        str(u): round(quotient(int((away["urgency"] == u).sum()), len(some)), 3)
        for u, some in commands.groupby("urgency")
    }
    late = ((rows["sent"] - rows["intended"]) * 1e3).quantile(steady.LATE_PERCENTILE / 100)
    return {
        "commands": len(commands),
        "taken": len(taken),
        "turned_away": len(away),
        "unknown": int((commands["outcome"] == "unknown").sum()),
        "turned_away_by_urgency": by_urgency,
        "urgent_away": by_urgency.get(str(min(URGENCIES)), 0.0),
        "codes": {
            str(code): int(n) for code, n in rows["code"].value_counts().sort_index().items()
        },
        "told_p50_ms": _ms(taken["told"] - taken["intended"], 50),
        "told_p99_ms": _ms(taken["told"] - taken["intended"], 99),
        "done_p50_ms": _ms(taken["heard"] - taken["intended"], 50),
        "done_p99_ms": _ms(taken["heard"] - taken["intended"], 99),
        "away_p99_ms": _ms(away["told"] - away["intended"], 99),
        "reads": len(reads),
        "reads_turned_away": int((reads["outcome"] == "turned away").sum()),
        "reads_failed": int((reads["outcome"] == "unknown").sum()),
        "reads_old": int((answered["age"] > 0).sum()),
        "read_p99_ms": _ms(answered["told"] - answered["intended"], 99),
        "late_p99_ms": round(float(late), 1),
        "on_time": bool(late <= steady.LATE_SECONDS * 1e3),
    }


def _ms(seconds: pd.Series[float], percent: float) -> float:
    """A percentile in ms; one that was never reached counts as the longest of all."""
    if seconds.empty:
        return float("nan")
    filled = seconds.fillna(np.inf)
    return round(float(np.percentile(filled, percent, method="higher")) * 1e3, 1)
