"""The conditions of a valid run: a generator on time, a level backlog, and Little's law.

All three are pure functions of the measurements. Instants are monotonic nanoseconds of one host; a
*window* is (from, until).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labkit.experiments.intervals import quotient

Window = tuple[float, float]

#: A load is ended once whatever is sent would wait this long, at the pace of the last seconds, or
#: at that of the whole load if it was higher: a pause of the machine is no verdict.
LONGEST_WAIT, PACE_SECONDS = 60.0, 10.0

#: The largest relative deviation from Little's law in a valid run.
LITTLE = 0.05
#: A backlog that grows by less than this share of the offered rate is level.
GROWTH = 0.02
#: The generator is on time if this percentile of its lateness is within the bound, and if it sent
#: all but this share of the window's commands within the window.
LATE_PERCENTILE, LATE_SECONDS, MISSED = 99.0, 0.050, 0.01


def on_time(commands: pd.DataFrame, window: Window) -> dict[str, Any]:
    """The lateness of the commands: from the intended instant to the send (``sent``).

    A late generator offers a different load than requested: bursts and pauses.
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


class Overload:
    """Whether a load is so far above what the workers do that its end is clear."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # one look a second, of the last seconds
        self._first: tuple[float, int] | None = None

    def look(self, now: float, sent: int, visible: int) -> str:
        """Why the load should end; "": it may go on. ``now`` in seconds."""
        self._first = self._first or (now, visible)
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, visible))
        while len(self._seen) > 1 and now - self._seen[1][0] >= PACE_SECONDS:
            self._seen.popleft()
        if now - self._first[0] < PACE_SECONDS:
            return ""
        pace = max(
            (visible - before) / (now - at)
            for at, before in (self._first, self._seen[0])
            if now > at
        )
        backlog = sent - visible
        if pace <= 0 or backlog <= pace * LONGEST_WAIT:
            return ""
        return (
            f"after {now - self._first[0]:.0f} s {backlog:,} commands are in the system and "
            f"{pace:,.0f} a second leave it: the next would wait {backlog / pace:,.0f} s"
        )


def level(samples: pd.DataFrame, window: Window, rate: float) -> dict[str, Any]:
    """Whether the number in the system is level: its slope, in commands per second.

    The slope is that of a least-squares line. A backlog grows if it exceeds the share ``GROWTH`` of
    the offered rate.
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

    - ``L``: the mean number in the system over the window, from the ``samples`` of the observer.
    - ``lambda``: commands sent in the window, per second.
    - ``W``: the mean time of those commands from ``sent`` to the view: to the middle between the
      listener's last read that missed the command and its first read that saw it.
    - ``edges``: what a finite window adds to lambda W. Commands sent before the window count in L
      only, and the end of those that leave after it in W only. The two nearly cancel in a long
      window; in a short one, a pause of the machine at one edge would not. Both are known, since
      the times of all ``commands`` are, also of those outside the window.

    So L = lambda W + edges holds in every window, and ``difference`` is what is left. It is NaN,
    and not ``ok``, if a command was never seen.
    """
    nanoseconds = window[1] - window[0]
    left = (commands["stale"] + commands["visible"]) / 2
    came = commands["sent"].between(*window)
    in_system = float((left - commands["sent"])[came].sum(skipna=False))
    inside = float((left.clip(*window) - commands["sent"].clip(*window)).sum(skipna=False))
    number = _mean(samples["at"].to_numpy(), samples["in_system"].to_numpy(), window)
    off = abs(number - inside / nanoseconds) / number if number > 0 else float("nan")
    return {
        "L": round(number, 3),
        "lambda": round(quotient(int(came.sum()), nanoseconds / 1e9), 3),
        "W_ms": round(quotient(in_system / 1e6, int(came.sum())), 4),
        "lambda_W": round(in_system / nanoseconds, 3),
        "edges": round((inside - in_system) / nanoseconds, 3),
        "difference": round(off, 4),
        "bound": LITTLE,
        "ok": bool(off <= LITTLE),
    }


def _mean(at: NDArray[np.float64], values: NDArray[np.float64], window: Window) -> float:
    """The mean over time by trapezoids: a slow look stands for a longer time."""
    if not len(at):
        return float("nan")
    inside = (at > window[0]) & (at < window[1])
    edges = np.interp(window, at, values)
    x = np.concatenate([[window[0]], at[inside], [window[1]]])
    y = np.concatenate([edges[:1], values[inside], edges[1:]])
    return float(np.trapezoid(y, x) / (window[1] - window[0]))
