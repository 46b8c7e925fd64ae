"""A plot of bursts: the backlog over time, with the drain as it is predicted and as it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from labkit.plots.style import (
    BLUE,
    GREEN,
    INK,
    OFFSET,
    ORANGE,
    PURPLE,
    VERMILLION,
    digits,
    finish,
    require,
)

#: One look for each peak, the highest first: colour, marker.
LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (VERMILLION, "v"))


def backlog_over_time(backlog: pd.DataFrame, runs: pd.DataFrame, ax: Axes) -> Axes:
    """The backlog of each burst against the time since its peak ended.

    Of one mechanism ("none", say). ``backlog`` has a row for each instant of each burst: ``times``
    (of the capacity), ``round``, ``seconds`` (from the start) and ``backlog`` (commands). ``runs``
    has a row for each burst:
    ``times``, ``round``, ``begins_s`` and ``ends_s`` (of the peak), ``backlog`` (at its end),
    ``predicted_s`` and ``measured_s`` (the drain). A thin line is a burst; the dashed one is the
    prediction backlog / (capacity - arrivals), and the marker where the backlog was a usual one
    again, both of the median burst.
    """
    require(runs, "burst")
    right, first, last = 1.0, 0.0, 1.0
    ranks = sorted(runs["times"].unique(), reverse=True)
    for times, (color, marker) in zip(ranks, LOOKS, strict=False):
        mine = runs[runs["times"] == times]
        for run in mine.to_dict("records"):
            of = (backlog["times"] == times) & (backlog["round"] == run["round"])
            at = backlog.loc[of, "seconds"].to_numpy(float) - run["ends_s"]
            width = 1 if len(mine) > 1 else 2.5
            ax.plot(at, backlog.loc[of, "backlog"], color=color, lw=width, alpha=0.5)
            first, last = min(first, at[0]), max(last, at[-1])
        high, predicted, measured = (
            float(mine[name].median()) for name in ("backlog", "predicted_s", "measured_s")
        )
        name = f"{times:g} times: predicted {_seconds(predicted)}, measured {_seconds(measured)}"
        line = {"color": INK, "lw": 1.6, "ls": (0, (4, 2)), "zorder": 3}
        ax.plot([0, predicted], [high, 0], **line)  # type: ignore[arg-type]
        ax.plot([measured], [0], marker, color=color, mec=INK, ms=10, zorder=4, label=name)
        box = {"fc": "white", "ec": "none", "pad": 1}
        ax.annotate(f"{times:g} times", (0, high), (7, 3), bbox=box, zorder=5, **OFFSET)
        right = max([right, *(v for v in (predicted, measured) if np.isfinite(v))])
    ax.plot([], [], color=INK, lw=1.6, ls=(0, (4, 2)), label="backlog / (capacity - arrivals)")
    left = float((runs["ends_s"] - runs["begins_s"]).max())
    ax.axvspan(-left, 0, color="#eeeeee", zorder=0)
    ax.annotate("the peak", (-left / 2, 1.0), (0, -12), ha="center", xycoords=_AXES, **OFFSET)
    drained = np.isfinite(runs["measured_s"]).all()
    ax.set_xlim(max(-2.5 * left, first), 1.12 * right if drained else last)
    most = float(backlog["backlog"].max())
    ax.set_ylim(-0.03 * most, 1.1 * most)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("seconds since the peak ended")
    ax.set_ylabel("commands that are due and not visible")
    ax.set_title(_finding(runs), fontsize=11)
    finish(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
    return ax


_AXES = ("data", "axes fraction")


def _seconds(value: float) -> str:
    return f"{digits(value)} s" if np.isfinite(value) else "never"


def _finding(runs: pd.DataFrame) -> str:
    top = runs[runs["times"] == runs["times"].max()]
    length = float((top["ends_s"] - top["begins_s"]).median())
    took = _seconds(float(top["measured_s"].median()))
    known = runs.dropna(subset=["predicted_s", "measured_s"])
    off = (known["predicted_s"] / known["measured_s"] - 1).abs().median()
    said = f"the prediction is {off:.0%} off (median)" if len(known) else "there is no prediction"
    times = f"{top['times'].iloc[0]:g} times the capacity"
    drained = "are not drained" if took == "never" else f"take {took} to drain"
    return f"{digits(length)} s at {times} {drained};\n{said}"
