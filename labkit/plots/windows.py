"""The plot of windows: revenue a minute, with late records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from labkit.plots.style import BLUE, INK, ORANGE, SKY, VERMILLION, finish, require


def revenue_a_minute(minutes: pd.DataFrame, ax: Axes) -> Axes:
    """The revenue in windows of one minute and the late revenue, against pandas.

    ``minutes`` has a row for each minute (the index is its name) and the columns ``windows``,
    ``late`` and ``pandas``, in cents.
    """
    require(minutes, "minute")
    at = np.arange(len(minutes))
    held, late, expected = (minutes[c].to_numpy(float) / 100 for c in ("windows", "late", "pandas"))
    ax.bar(at, held, color=SKY, edgecolor=BLUE, lw=0.5, label="in its window")
    style: Any = {"color": ORANGE, "edgecolor": INK, "lw": 0.5, "hatch": "////"}
    ax.bar(at, late, bottom=held, label="late: its window was closed", **style)
    ax.plot(at, expected, "D", color="white", mec=INK, ms=4, label="pandas over the whole log")
    wrong = np.abs(held + late - expected) > 0.001
    if wrong.any():
        ax.plot(
            at[wrong], expected[wrong], "x", color=VERMILLION, ms=10, mew=2, label="they differ"
        )
    every = -(-len(minutes) // 6)
    ax.set_xticks(at[::every], [str(name) for name in minutes.index[::every]])
    ax.set_xlim(-1, len(minutes))
    ax.set_ylim(0, 1.1 * max(float(expected.max()), float((held + late).max()), 1))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("minute of the sale, by the clock of the till (UTC)")
    ax.set_ylabel("revenue a minute (whole units)")
    share = 100 * late.sum() / max((held + late).sum(), 1)
    agree = "and no cent is missing"
    if wrong.any():
        agree = f"and {wrong.sum()} of {len(minutes)} minutes differ from pandas"
    ax.set_title(f"{share:.1f} % of the revenue was late for its window, {agree}", fontsize=11)
    return finish(ax)
