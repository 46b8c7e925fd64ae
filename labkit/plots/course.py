"""Data and an ``ax`` in, a labelled ``ax`` out. A title says what the data show.

Nothing here touches pyplot: a plot changes no global state, needs no display, and two threads may
draw at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from labkit.plots.style import BLUE, INK, OFFSET, ORANGE, SKY, VERMILLION, finish, in_ms


def batch_sizes(batches: pd.DataFrame, ax: Axes) -> Axes:
    """What larger batches gain: one bar a batch size.

    ``batches`` has ``batch size`` and ``commands a second``, the smallest batch first; the labels
    are factors over that one. Raises :class:`ValueError` for no batches.
    """
    if batches.empty:
        raise ValueError("the speed of no batch cannot be drawn")
    names = [f"{size:,} a batch" for size in batches["batch size"]]
    speeds = batches["commands a second"].to_numpy()
    factors = speeds / speeds[0]
    at = np.arange(len(names))
    ax.barh(at, speeds, color=SKY, edgecolor=BLUE, hatch="//", label="commands a second")
    for place, speed, factor in zip(at, speeds, factors, strict=True):
        ax.text(speed, float(place), f"  {speed:,.0f}  (× {factor:,.1f})", va="center", color=INK)
    ax.set_yticks(at, names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.5 * float(speeds.max()))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("commands a second, one handler")
    best = int(factors.argmax())
    ax.set_title(f"{names[best]} is {factors[best]:,.1f} times as fast as {names[0]}", fontsize=11)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color="#dddddd")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def through_versions(
    versions: Sequence[int], cents: Sequence[int], snapshots: Sequence[int], ax: Axes
) -> Axes:
    """A stream's amount (in cents) at some of its versions, and where its snapshots lie.

    Raises :class:`ValueError` for no versions.
    """
    if not versions:
        raise ValueError("a stream without versions cannot be drawn")
    amounts = np.asarray(cents, float) / 100
    ax.plot(versions, amounts, color=BLUE, marker="o", ms=4, label="balance, folded from events")
    for number, version in enumerate(snapshots):
        name = "snapshot" if number == 0 else "_nolegend_"
        ax.axvline(version, color=ORANGE, ls="--", lw=2, label=name)
    ax.set_xlabel("version of the stream")
    ax.set_ylabel("balance (whole units)")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_title(
        f"Any of {versions[-1]:,} states can be asked for; "
        f"from {snapshots[0]:,} on, a snapshot is nearer than the start"
        if snapshots
        else f"Any of {versions[-1]:,} states can be asked for",
        fontsize=11,
    )
    finish(ax)
    ax.legend(loc="upper left", frameon=False, fontsize=9)
    return ax


def money_on_its_way(steps: pd.DataFrame, ax: Axes) -> Axes:
    """Where the money is after each step of a transfer: one bar a step, stacked.

    ``steps`` has a row for each step (its index names it) and a column for each place, in cents.
    Raises :class:`ValueError` for no steps.
    """
    if steps.empty:
        raise ValueError("the money of no step cannot be drawn")
    at, bottom = np.arange(len(steps)), np.zeros(len(steps))
    looks = ((SKY, "//"), (ORANGE, "xx"), (BLUE, ""), (VERMILLION, ".."))
    for (color, hatch), name in zip(looks, steps.columns, strict=False):
        cents = steps[name].to_numpy(float)
        ax.bar(at, cents, bottom=bottom, color=color, hatch=hatch, edgecolor="white", label=name)
        bottom += cents
    ax.set_xticks(at, [str(name).replace(", ", ",\n") for name in steps.index], fontsize=9)
    ax.set_ylim(0, 1.15 * max(float(bottom.max()), 1))
    ax.set_ylabel("cents")
    total = bottom[0]
    kept = bool((bottom == total).all())
    ax.set_title(
        f"{total:,.0f} cents at every step, wherever they are"
        if kept
        else f"{total:,.0f} cents at the start, {bottom[-1]:,.0f} at the end",
        fontsize=11,
    )
    finish(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=9)
    return ax


def seen_through_a_rebuild(looks: pd.DataFrame, ax: Axes) -> Axes:
    """What a reader saw of a view while it was built anew, look by look.

    ``looks`` has a row for each look: ``sent`` (documents that had to be there), ``seen`` and
    ``new`` (those that the reader saw, and how many had what only the new fold gives), ``built``
    (documents of the next generation) and ``generation`` (the name of the one that served). Raises
    :class:`ValueError` for no looks.
    """
    if looks.empty:
        raise ValueError("a rebuild that nobody looked at cannot be drawn")
    at = np.arange(1, len(looks) + 1)
    sent, seen, new, built, serving = (
        looks[name].to_numpy() for name in ("sent", "seen", "new", "built", "generation")
    )
    building = (serving == serving[0]) & (built > 0)
    ax.plot(at[building], built[building], ":", color=INK, lw=1.8, label="next generation, unseen")
    ax.plot(at, seen, "o", color=SKY, mec=BLUE, ms=8, label="documents that a reader saw")
    ax.plot(at, new, "D", color=ORANGE, mec=INK, ms=5, label="… of these by the new fold")
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
    found = f"{len(looks)} looks, and each saw all that was there"
    if wrong.any():
        found = f"{wrong.sum()} of {len(looks)} looks did not see all that was there"
    if after.any() and (new[after] == seen[after]).all():
        found += "; the new fold came from one to the next"
    ax.set_title(found, fontsize=11)
    return finish(ax)


def revenue_a_minute(minutes: pd.DataFrame, ax: Axes) -> Axes:
    """What windows of a minute hold, and what came too late for them, against pandas.

    ``minutes`` has a row for each minute (its index names it) and the columns ``windows``, ``late``
    and ``pandas``, in cents. Raises :class:`ValueError` for no minutes.
    """
    if minutes.empty:
        raise ValueError("the revenue of no minute cannot be drawn")
    at = np.arange(len(minutes))
    held, late, expected = (minutes[c].to_numpy(float) / 100 for c in ("windows", "late", "pandas"))
    ax.bar(at, held, color=SKY, edgecolor=BLUE, lw=0.5, label="in its window")
    style: Any = {"color": ORANGE, "edgecolor": INK, "lw": 0.5, "hatch": "////"}
    ax.bar(at, late, bottom=held, label="came after its window had closed", **style)
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
    ax.set_xlabel("minute of the sale, by the till's clock (UTC)")
    ax.set_ylabel("revenue a minute (whole units)")
    share = 100 * late.sum() / max((held + late).sum(), 1)
    agree = "and not a cent is missing"
    if wrong.any():
        agree = f"and {wrong.sum()} of {len(minutes)} minutes differ from pandas"
    ax.set_title(f"{share:.1f} % of the revenue came too late for its window, {agree}", fontsize=11)
    return finish(ax)


def stale_against_waiting(tries: pd.DataFrame, ax: Axes) -> Axes:
    """How many reads were stale against how long they took: what each way to ask buys and costs.

    ``tries`` has a row for each read: ``strategy``, ``pause_ms`` (slept before it was asked),
    ``ms`` (from the reply to a write until the answer to the read), ``stale``. What was asked
    eventually is a point for each pause; below them, in a strip of its own, is what waits for
    something: its median, and its 5th to 95th percentile. Raises :class:`ValueError` for no reads.
    """
    if tries.empty:
        raise ValueError("the staleness of no read cannot be drawn")
    eventual = tries[tries["strategy"] == "eventual"].groupby("pause_ms")
    at, share = eventual["ms"].median(), 100 * eventual["stale"].mean()
    ax.plot(at, share, "o--", color=BLUE, mec=INK, ms=8, label="eventual, after a pause")
    for pause, ms, percent in zip(at.index, at, share, strict=True):
        name = f"after {pause:g} ms" if pause else "asked at once"
        ax.annotate(f"{name}: {percent:.0f} %", (ms, percent), (9, 5), **OFFSET)
    waited = [s for s in WAITING if (tries["strategy"] == s).any()]
    for row, strategy in enumerate(waited, 1):
        found = tries[tries["strategy"] == strategy]
        low, middle, high = (float(found["ms"].quantile(q)) for q in (0.05, 0.5, 0.95))
        wrong = int(found["stale"].sum())
        color, y = VERMILLION if wrong else ORANGE, -ROW * row
        name = "waits for its goal: median, and 5 to 95 % of the reads" if row == 1 else ""
        ax.plot(
            [low, high],
            [y, y],
            color=color,
            lw=3,
            solid_capstyle="round",
            label=name or "_nolegend_",
        )
        ax.plot([middle], [y], WAITING[strategy], color=color, mec=INK, ms=9, zorder=3)
        text = f"{strategy}: {in_ms(middle)}, {wrong} of {len(found):,} stale"
        ax.annotate(text, (high, y), (9, -3), **OFFSET)
    ax.axhspan(-ROW * (len(waited) + 0.7), 0, color="#f3f3f3", zorder=0)
    ax.set_xlim(0, 1.5 * float(tries.groupby(["strategy", "pause_ms"])["ms"].quantile(0.95).max()))
    ax.set_ylim(-ROW * (len(waited) + 0.7), 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_xlabel("from “your write is done” to the answer (median, ms)")
    ax.set_ylabel("stale reads (%)")
    ax.set_title(_what_waiting_buys(tries, share), fontsize=11)
    return finish(ax)


#: The strategies that wait, each with a marker of its own; and how far apart their rows are.
WAITING = {"token": "s", "version": "^", "linearizable": "D"}


ROW = 10.0


def _what_waiting_buys(tries: pd.DataFrame, share: pd.Series[float]) -> str:
    promised = tries[tries["strategy"] != "eventual"]
    wrong = int(promised["stale"].sum())
    at_once = f"{share.iloc[0]:.0f} % of the reads at once were stale" if len(share) else ""
    if wrong:
        kept = f"{wrong} of {len(promised):,} that had promised not to be were, too"
    else:
        kept = f"none of {len(promised):,} that waited for what they needed was"
    return ",\n".join(filter(None, [at_once, kept]))
