"""Plots of the read side: a rebuild, and stale reads against waiting time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from labkit.plots.rule_of_three import counted
from labkit.plots.style import BLUE, INK, OFFSET, ORANGE, SKY, VERMILLION, finish, in_ms, require

#: The strategies that wait, with their markers; and the distance of their rows.
WAITING = {"token": "s", "version": "^", "linearizable": "D"}
ROW = 10.0


def seen_through_a_rebuild(looks: pd.DataFrame, ax: Axes) -> Axes:
    """What a reader saw of a view during a rebuild, look by look.

    ``looks`` has a row for each look: ``sent`` (expected documents), ``seen`` (documents that the
    reader saw), ``new`` (those of them with the result of the new projection), ``built`` (documents
    of the next generation) and ``generation`` (the name of the serving generation).
    """
    require(looks, "look")
    at = np.arange(1, len(looks) + 1)
    sent, seen, new, built, serving = (
        looks[name].to_numpy() for name in ("sent", "seen", "new", "built", "generation")
    )
    building = (serving == serving[0]) & (built > 0)
    ax.plot(
        at[building], built[building], ":", color=INK, lw=1.8, label="next generation, not serving"
    )
    ax.plot(at, seen, "o", color=SKY, mec=BLUE, ms=8, label="documents that a reader saw")
    ax.plot(at, new, "D", color=ORANGE, mec=INK, ms=5, label="… of these by the new projection")
    wrong = seen != sent
    if wrong.any():
        ax.plot(at[wrong], seen[wrong], "x", color=VERMILLION, ms=12, mew=3, label="some missing")
    for switch in np.flatnonzero(serving[1:] != serving[:-1]):
        ax.axvline(at[switch] + 0.5, color=INK, lw=1)
        ax.text(at[switch] + 0.4, 0.5 * sent.max(), "the switch", rotation=90, ha="right")
    ax.set_ylim(-0.04 * sent.max(), 1.1 * sent.max())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("look at the view, one after each batch of the rebuild")
    ax.set_ylabel("documents")
    after = serving != serving[0]
    found = f"Each of {len(looks)} looks saw all documents"
    if wrong.any():
        found = f"{wrong.sum()} of {len(looks)} looks missed documents"
    if after.any() and (new[after] == seen[after]).all():
        found += ";\nthe new projection appeared for all of them at once"
    ax.set_title(found, fontsize=11)
    return finish(ax)


def stale_against_waiting(tries: pd.DataFrame, ax: Axes) -> Axes:
    """The share of stale reads against their duration, for each read strategy.

    ``tries`` has a row for each read: ``strategy``, ``pause_ms`` (the sleep before the read),
    ``ms`` (from the reply to a write to the answer to the read), ``stale``. Eventual reads are a
    point for each pause. The strip below shows the strategies that wait: their median, and their
    5th to 95th percentile.
    """
    require(tries, "read")
    eventual = tries[tries["strategy"] == "eventual"].groupby("pause_ms")
    at, share = eventual["ms"].median(), 100 * eventual["stale"].mean()
    ax.plot(at, share, "o--", color=BLUE, mec=INK, ms=8, label="eventual, after a pause")
    for pause, ms, percent in zip(at.index, at, share, strict=True):
        name = f"after {pause:g} ms" if pause else "immediate"
        ax.annotate(f"{name}: {percent:.0f} %", (ms, percent), (9, 5), **OFFSET)
    waited = [s for s in WAITING if (tries["strategy"] == s).any()]
    for row, strategy in enumerate(waited, 1):
        found = tries[tries["strategy"] == strategy]
        low, middle, high = (float(found["ms"].quantile(q)) for q in (0.05, 0.5, 0.95))
        wrong = int(found["stale"].sum())
        color, y = VERMILLION if wrong else ORANGE, -ROW * row
        name = "waits for its goal: median, and 5th to 95th percentile" if row == 1 else ""
        ax.plot(
            [low, high],
            [y, y],
            color=color,
            lw=3,
            solid_capstyle="round",
            label=name or "_nolegend_",
        )
        ax.plot([middle], [y], WAITING[strategy], color=color, mec=INK, ms=9, zorder=3)
        text = f"{strategy}: {in_ms(middle)}, {counted(wrong, len(found))} stale"
        ax.annotate(text, (high, y), (9, -3), **OFFSET)
    ax.axhspan(-ROW * (len(waited) + 0.7), 0, color="#f3f3f3", zorder=0)
    ax.set_xlim(0, 1.5 * float(tries.groupby(["strategy", "pause_ms"])["ms"].quantile(0.95).max()))
    ax.set_ylim(-ROW * (len(waited) + 0.7), 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_xlabel("from the reply to the write to the answer (median, ms)")
    ax.set_ylabel("stale reads (%)")
    ax.set_title(_what_waiting_buys(tries, share), fontsize=11)
    return finish(ax)


def _what_waiting_buys(tries: pd.DataFrame, share: pd.Series[float]) -> str:
    promised = tries[tries["strategy"] != "eventual"]
    wrong = int(promised["stale"].sum())
    at_once = f"{share.iloc[0]:.0f} % of the immediate reads were stale" if len(share) else ""
    kept = f"{counted(wrong, len(promised))} reads that waited for their goal were stale"
    return ";\n".join(filter(None, [at_once, kept]))
