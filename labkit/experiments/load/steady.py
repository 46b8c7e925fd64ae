"""What makes a run count: a generator on time, a level backlog, and Little's law.

All three are pure functions of what was measured. Instants are monotonic nanoseconds of one host;
a *window* is (from, until).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Window = tuple[float, float]

#: Little's law must hold within this share, or the run is thrown out.
LITTLE = 0.05
#: A backlog that grows by less than this share of the offered rate is level.
GROWTH = 0.02
#: The generator is on time if so few commands in a hundred left later than so many seconds, and if
#: it sent all but this share of what the timetable has in the window within the window.
LATE_PERCENTILE, LATE_SECONDS, MISSED = 99.0, 0.050, 0.01


def on_time(commands: pd.DataFrame, window: Window) -> dict[str, Any]:
    """How late the commands left: from the intended instant to the bus's (``sent``).

    A late generator offers another load than the one that was asked for: bunches, and pauses.
    """
    late = (commands["sent"] - commands["intended"]).dropna() / 1e6
    within = int(commands["sent"].between(*window).sum())
    missed = 1 - within / len(commands) if len(commands) else 1.0
    bound = LATE_SECONDS * 1e3
    at = {f"p{q:g}": round(float(late.quantile(q / 100)), 3) for q in (50, 99, 99.9)}
    return {
        "late_ms": at | {"max": round(float(late.max()), 3)},
        "late_bound_ms": bound,
        "sent_in_window": within,
        "intended_in_window": len(commands),
        "ok": bool(late.quantile(LATE_PERCENTILE / 100) <= bound and missed <= MISSED),
    }


def level(samples: pd.DataFrame, window: Window, rate: float) -> dict[str, Any]:
    """Whether as much leaves as comes: the slope of the number in the system, in commands a second.

    A straight line is fitted by least squares; what is above ``GROWTH`` of the offered rate grows.
    """
    seen = samples[samples["at"].between(*window)]
    number = seen["in_system"].to_numpy()
    seconds = (seen["at"].to_numpy() - window[0]) / 1e9
    slope = float(np.polyfit(seconds, number, 1)[0]) if len(number) > 1 else float("nan")
    return {
        "max": round(float(number.max()), 1) if len(number) else None,
        "growth_per_second": round(slope, 2),
        "bound_per_second": round(GROWTH * rate, 2),
        "ok": bool(slope <= GROWTH * rate),
    }


def little(commands: pd.DataFrame, samples: pd.DataFrame, window: Window) -> dict[str, Any]:
    """L = lambda W (J. D. C. Little, *A Proof for the Queuing Formula L = lambda W*, 1961).

    The system reaches from the generator's call of ``send`` to the view (``observer.py``):

    - ``L``: the mean over the window of the number in it, from the ``samples`` of the observer.
    - ``lambda``: commands sent in the window, a second.
    - ``W``: of those commands the mean time from ``sent`` to the view, by the looks of the
      listener: to the middle between the last that missed it and the first that saw it.

    At both edges of the window the law is off by what is under way: commands that came before it
    and stay into it count in L alone, those that stay beyond it in W alone. As they are about as
    many, what remains is small where the window is much longer than W: ``edge`` is W over window.
    NaN, and not within the bound, where a command was never seen.
    """
    seconds = (window[1] - window[0]) / 1e9
    came = commands[commands["sent"].between(*window)]
    left = (came["stale"] + came["visible"]) / 2
    w = float(np.mean(left - came["sent"])) / 1e9 if len(came) else float("nan")
    if left.isna().any():
        w = float("nan")
    rate = len(came) / seconds
    number = _mean(samples["at"].to_numpy(), samples["in_system"].to_numpy(), window)
    off = abs(number - rate * w) / number if number > 0 else float("nan")
    return {
        "L": round(number, 3),
        "lambda": round(rate, 3),
        "W_ms": round(w * 1e3, 4),
        "lambda_W": round(rate * w, 3),
        "difference": round(off, 4),
        "bound": LITTLE,
        "edge": round(w / seconds, 4),
        "ok": bool(off <= LITTLE),
    }


def _mean(at: NDArray[np.float64], values: NDArray[np.float64], window: Window) -> float:
    """Over time, not over looks: where a look takes long, it stands for more of it (trapezoids)."""
    if not len(at):
        return float("nan")
    inside = (at > window[0]) & (at < window[1])
    edges = np.interp(window, at, values)
    x = np.concatenate([[window[0]], at[inside], [window[1]]])
    y = np.concatenate([edges[:1], values[inside], edges[1:]])
    return float(np.trapezoid(y, x) / (window[1] - window[0]))
