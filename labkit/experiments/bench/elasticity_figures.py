"""The figures of an elastic run: pure functions of what was offered, seen and done.

The lag here is not the one that the autoscaler measured. It is computed from the commands: at any
time, the age of the oldest command that the view does not show yet, from its intended instant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.experiments.intervals import interval_if_any, quotient
from labkit.experiments.load.steady import Window

if TYPE_CHECKING:
    import pandas as pd

    from labkit.experiments.load.offer import Loaded
    from labkit.run.elastic import Look

Floats = NDArray[np.float64]

#: The lag is computed this often.
GRID_SECONDS = 0.25
#: Two overloads with a shorter break between them are one.
BREAK_SECONDS = 1.0
#: A move is compared with the seconds before it; its dip is looked for in those after it. A new
#: worker starts and joins within them.
BEFORE_SECONDS, AFTER_SECONDS = 3.0, 6.0
FIGURES = (
    *("reaction_s", "above_s", "max_lag_s", "p50_s", "p99_s", "drain_s", "worker_seconds"),
    *("most_workers", "moves", "dip", "stall_s", "cpu_while_above"),
)


def row(loaded: Loaded, looks: Sequence[Look], bound: float) -> dict[str, Any]:
    """The figures of a run; ``bound`` of the lag, in seconds.

    - ``reaction_s``: the longest time from the lag's rise above the bound until it is below again.
    - ``above_s``: the seconds with a lag above the bound; ``max_lag_s``: the longest lag.
    - ``p50_s``, ``p99_s``: of the times from intended to visible.
    - ``drain_s``: from the last intended command until all was visible.
    - ``worker_seconds``: from the beginning until all was visible.
    - ``dip``: the median share of the rate of commits that was missing in the worst second after a
      worker was added. ``stall_s``: the longest time without a commit after any change.
    - ``cpu_while_above``: the mean share of a core that a worker took while the lag was above.
    - ``red``: the checkers that turned red; ``trouble``: why a run does not count.
    """
    commands, window = loaded.commands, loaded.window
    at, lags = lag_over_time(commands, window)
    overloads = list(above(at, lags, bound))
    times = ((commands["visible"] - commands["intended"]) / 1e9).fillna(math.inf)
    steps = list(moves(loaded, looks))
    dips = [step["dip"] for step in steps if step["to"] > step["workers"]]
    busy = [
        look.cpu
        for look in looks
        if not math.isnan(look.cpu) and any(a <= look.at <= b for a, b in overloads)
    ]
    last = float(commands["intended"].max())
    judged = loaded.report.get("checkers", {})
    red = [name for name, verdict in judged.items() if verdict["ok"] is False]
    return {
        "reaction_s": max((b - a for a, b in overloads), default=0.0),
        "above_s": sum((b - a for a, b in overloads), 0.0),
        "max_lag_s": float(lags.max()),
        "p50_s": float(times.quantile(0.5)),
        "p99_s": float(times.quantile(0.99)),
        "drain_s": (float(commands["visible"].max()) - last) / 1e9,
        "worker_seconds": worker_seconds(looks, (window[0], float(at[-1]))),
        "most_workers": max((look.wanted for look in looks), default=0),
        "moves": len(steps),
        "dip": float(np.nanmedian(dips)) if np.isfinite(dips).any() else math.nan,
        "stall_s": max((step["stall_s"] for step in steps), default=math.nan),
        "cpu_while_above": float(np.mean(busy)) if busy else math.nan,
        "commands": len(commands),
        "red": ", ".join(red),
        "trouble": "; ".join(loaded.trouble),
        "ok": loaded.ok,
    }


def lag_over_time(commands: pd.DataFrame, window: Window) -> tuple[Floats, Floats]:
    """Instants (monotonic ns), and the age of the oldest command that is not visible then, in s.

    From the beginning of the window until everything is visible.
    """
    intended = commands["intended"].to_numpy(float)
    visible = commands["visible"].fillna(math.inf).to_numpy(float)
    seen = visible[np.isfinite(visible)]
    end = max(window[1], float(seen.max()) if len(seen) else window[1])
    at = np.arange(window[0], end + GRID_SECONDS * 1e9, GRID_SECONDS * 1e9)
    lags = np.zeros(len(at))
    for place, now in enumerate(at):
        waiting = intended[(intended <= now) & (visible > now)]
        lags[place] = (now - waiting.min()) / 1e9 if len(waiting) else 0.0
    return at, lags


def above(at: Floats, lags: Floats, bound: float) -> Iterator[tuple[float, float]]:
    """The times (from, until) in which the lag is above a bound; all in seconds.

    ``at`` is in nanoseconds, as in ``lag_over_time``.
    """
    begun, ended = math.nan, math.nan
    for now, lag in zip((at / 1e9).tolist(), lags, strict=True):
        if lag > bound:
            if math.isnan(begun) or now - ended > BREAK_SECONDS:
                if not math.isnan(begun):
                    yield begun, ended
                begun = now
            ended = now + GRID_SECONDS
    if not math.isnan(begun):
        yield begun, ended


def worker_seconds(looks: Sequence[Look], window: Window) -> float:
    """The sum over all workers of the seconds that they were there within the window."""
    start, end = window[0] / 1e9, window[1] / 1e9
    spans = [(look.at, look.wanted) for look in looks] + [(math.inf, 0)]
    return sum(
        count * max(0.0, min(until, end) - max(since, start))
        for (since, count), (until, _) in pairwise(spans)
    )


def moves(loaded: Loaded, looks: Sequence[Look]) -> Iterator[dict[str, Any]]:
    """The changes of the number of workers in the window, and what they did to the commits.

    ``at_s`` from the beginning of the window; ``workers`` before and ``to`` after;
    ``before_per_s``, ``least_per_s`` (in the worst second after it); ``dip`` = 1 - least / before;
    ``stall_s``: the longest time without a commit.
    """
    heard = np.sort(loaded.commands["heard"].dropna().to_numpy(float)) / 1e9
    start, end = loaded.window[0] / 1e9, loaded.window[1] / 1e9
    for look in looks:
        if look.wanted == look.workers or not start <= look.at <= end:
            continue
        before = _count(heard, look.at - BEFORE_SECONDS, look.at) / BEFORE_SECONDS
        until = look.at + AFTER_SECONDS
        seconds = np.arange(look.at, until - 1 + 1e-9, 0.2)
        least = min(_count(heard, since, since + 1) for since in seconds)
        inside = heard[(heard >= look.at) & (heard <= until)]
        stall = float(np.diff([look.at, *inside, until]).max())
        yield {
            "at_s": look.at - start,
            "workers": look.workers,
            "to": look.wanted,
            "lag_s": look.lag,
            "before_per_s": before,
            "least_per_s": float(least),
            "dip": 1 - quotient(least, before),
            "stall_s": stall,
        }


def _count(instants: Floats, since: float, until: float) -> int:
    return int(np.searchsorted(instants, until) - np.searchsorted(instants, since))


def course(loaded: Loaded, looks: Sequence[Look]) -> pd.DataFrame:
    """Over time, for a plot: ``at_s``, ``lag_s``, ``workers``, ``arrivals_per_s``, ``cpu``."""
    import pandas as pd

    start = loaded.window[0]
    at, lags = lag_over_time(loaded.commands, loaded.window)
    intended = loaded.commands["intended"].to_numpy(float)
    second = ((at - start) / 1e9).astype(int)
    each = np.bincount(((intended - start) / 1e9).astype(int), minlength=int(second[-1]) + 1)
    newest = np.searchsorted([look.at * 1e9 for look in looks], at, side="right") - 1
    of = [looks[max(0, place)] for place in newest]
    return pd.DataFrame(
        {
            "at_s": (at - start) / 1e9,
            "lag_s": lags,
            "workers": [look.wanted for look in of],
            "arrivals_per_s": each[second],
            "cpu": [look.cpu for look in of],
        }
    )


def summary(runs: pd.DataFrame, arms: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row for each of ``arms``: of each figure the median over the runs that count, and its
    interval (``_low``, ``_high``), with the ``level`` of its confidence; ``runs``, ``thrown_out``.
    ``cost_to_many``: worker seconds, as a share of those of the arm with the most in that round."""
    import pandas as pd

    most = runs.groupby(["load", "round"])["worker_seconds"].transform("max")
    runs = runs.assign(cost_to_many=runs["worker_seconds"] / most)
    rows = []
    for load, arm in arms:
        every = runs[(runs["load"] == load) & (runs["arm"] == arm)]
        mine = every[every["ok"]]
        found: dict[str, Any] = {"load": load, "arm": arm, "runs": len(mine), "level": math.nan}
        found["thrown_out"] = len(every) - len(mine)
        for name in (*FIGURES, "cost_to_many"):
            low, high, level = interval_if_any(mine[name].tolist())
            found |= {name: mine[name].median(), f"{name}_low": low, f"{name}_high": high}
            if not math.isnan(level):
                found["level"] = level
        rows.append(found)
    return pd.DataFrame(rows)
