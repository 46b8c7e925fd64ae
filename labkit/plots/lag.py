"""Consistency lag drawn: stages, what a read sees after how long, versions behind, three lags.

Like ``plots``: data and an ``ax`` in, a labelled ``ax`` out, a title that says what the data show.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from labkit.plots.style import BLUE, INK, ORANGE, SKY, VERMILLION, digits, finish, in_ms

#: Okabe and Ito's, one more than ``plots`` needs.
GREEN, PURPLE = "#009E73", "#CC79A7"
LOOKS = ((SKY, "//"), (ORANGE, ""), (PURPLE, "xx"), (BLUE, ""), (GREEN, ".."), (VERMILLION, "\\\\"))
#: Reads that are further behind are drawn as one.
MOST_VERSIONS = 9
#: What is drawn one after the other; the reply comes somewhere in the fourth.
WAY = ("intended", "sent", "polled", "decided", "fetched", "applied", "visible")


def stages_of_the_way(sums: pd.DataFrame, ax: Axes) -> Axes:
    """Where the time goes: the stages one after the other, and under them what the probe saw.

    ``sums`` is that of ``consistency.adds_up``. The reply is marked where it comes: the projector
    reads the log beside the one who waits for it. Raises :class:`ValueError` for no stages.
    """
    if sums.empty or sums.isna().to_numpy().any():
        raise ValueError("the stages of no command cannot be drawn")
    middle: Any = sums.mean(axis=1)
    heard = float(middle.to_numpy(float)[:4].sum())
    widths = middle.drop(["decided → heard", "heard → fetched", "sum", "whole"])
    widths["decided → fetched"] = middle["decided → heard"] + middle["heard → fetched"]
    left = 0.0
    for (color, hatch), (begin, end) in zip(LOOKS, pairwise(WAY), strict=True):
        width = float(widths[f"{begin} → {end}"])
        style: Any = {"color": color, "hatch": hatch, "edgecolor": "white", "lw": 0.5}
        ax.barh(
            0,
            width,
            left=left,
            height=0.55,
            label=f"{begin} → {end}: {in_ms(width)}",
            **style,
        )
        left += width
    ends = [float(sums[end]["whole"]) for end in ("at_least", "at_most")]
    ax.barh(1, middle["whole"], height=0.3, color="#dddddd", label="the whole, by the probe")
    ax.plot(ends, [1, 1], "|-", color=INK, ms=14, label="its ends")
    ax.plot([heard, heard], [-0.42, 0.42], color=INK, lw=1.5, ls="--")
    ax.text(heard, -0.45, "the reply", ha="center", va="bottom", fontsize=9, color=INK)
    arrow = {"arrowstyle": "<->", "color": INK}
    ax.annotate("", (left, 0.42), (heard, 0.42), arrowprops=arrow)
    ax.text(
        (heard + left) / 2,
        0.47,
        f"lag: {in_ms(left - heard)}",
        ha="center",
        va="top",
        fontsize=9,
    )
    ax.set_yticks([0, 1], ["stages", "probe"])
    ax.set_ylim(1.5, -0.8)
    ax.set_xlim(0, 1.08 * max(left, ends[1]))
    ax.set_xlabel("from the intended instant (mean, ms)")
    off = abs(middle["sum"] / middle["whole"] - 1)
    share = 100 * (left - heard) / left
    ax.set_title(
        f"{share:.0f} % of the way to the view come after the reply;\n"
        f"the stages add up to {in_ms(left)}, a reader saw {in_ms(float(middle['whole']))} "
        f"({100 * off:.1f} % apart)",
        fontsize=11,
    )
    return finish(ax, grid="x")


def t_visibility(seen: pd.DataFrame, ax: Axes) -> Axes:
    """The chance that a read so long after the reply sees the write, from both ends.

    ``seen`` has ``t_ms``, ``at_least`` and ``at_most`` (``consistency.t_visibility``), and, where
    they are to be compared, ``model`` and ``independent``. Raises :class:`ValueError` for no times.
    """
    if seen.empty:
        raise ValueError("the visibility at no time cannot be drawn")
    t, low, high = (100 * seen[c].to_numpy(float) for c in ("t_ms", "at_least", "at_most"))
    t /= 100
    ax.fill_between(t, low, high, color=SKY, alpha=0.5, lw=0, label="measured: in here")
    ax.plot(t, low, "-", color=BLUE, lw=1.6, label="first look that saw it")
    ax.plot(t, high, "--", color=BLUE, lw=1.2, label="last look that missed it")
    lines = {"model": (VERMILLION, "-.", "the model"), "independent": (INK, ":", "stages apart")}
    for name, (color, style, label) in lines.items():
        if name in seen:
            ax.plot(t, 100 * seen[name], style, color=color, lw=2, label=label)
    ax.set_xlim(t[0], t[-1])
    ax.set_ylim(0, 104)
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("the read comes so long after “committed” (ms)")
    ax.set_ylabel("reads that see the write")
    half, most = (
        f"{_first(t, high, percent)} to {_first(t, low, percent)} ms" for percent in (50, 99)
    )
    at_once = f"At once, {low[0]:.0f} to {high[0]:.0f} % of the reads see the write"
    if round(low[0]) == round(high[0]):
        at_once = f"At once, {low[0]:.0f} % of the reads see the write"
    ax.set_title(f"{at_once};\nhalf of them do after {half}, 99 % after {most}", fontsize=11)
    return finish(ax)


def _first(t: NDArray[np.float64], share: NDArray[np.float64], percent: float) -> str:
    reached = np.flatnonzero(share >= percent)
    return digits(float(t[reached[0]])) if len(reached) else f"more than {digits(float(t[-1]))}"


def versions_behind(shares: pd.DataFrame, ax: Axes) -> Axes:
    """How many versions behind reads are: two bars a number, one for each end.

    ``shares`` is that of ``consistency.k_staleness``. Raises :class:`ValueError` for no reads.
    """
    if shares.empty:
        raise ValueError("the versions of no read cannot be drawn")
    kept = shares.iloc[:MOST_VERSIONS].copy()
    kept.iloc[-1] += shares.iloc[MOST_VERSIONS:].sum()
    at, looks = np.asarray(kept.index, float), ((SKY, "//", BLUE), (ORANGE, "", INK))
    names = ("at most: by the first look that saw it", "at least: by the last that missed it")
    for shift, column, name, (color, hatch, edge) in zip(
        (-0.2, 0.2), ("share", "share_at_best"), names, looks, strict=True
    ):
        values = 100 * kept[column]
        style: Any = {"color": color, "hatch": hatch, "edgecolor": edge}
        ax.bar(at + shift, values, 0.4, label=name, **style)
        for x, value in zip(at + shift, values, strict=True):
            text = f"{value:.1f}" if value >= 0.1 else "<0.1" if value > 0 else "0"
            ax.text(x, value + 1, text, ha="center", fontsize=8, color=INK)
    ax.set_ylim(0, 110)
    more = " or more" if len(shares) > len(kept) else ""
    ax.set_xticks(at, [f"{k:g}" for k in at[:-1]] + [f"{at[-1]:g}{more}"])
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("versions that a read is behind")
    ax.set_ylabel("reads")
    stale = [100 * (1 - shares[column].iloc[0]) for column in ("share_at_best", "share")]
    k = int((shares["share"].cumsum() < 0.99).sum())
    ax.set_title(
        f"{stale[0]:.0f} to {stale[1]:.0f} % of the reads of a busy stream are stale;\n"
        f"99 % see one of the newest {k + 1} versions",
        fontsize=11,
    )
    return finish(ax)


def three_lags(lags: pd.DataFrame, ax: Axes) -> Axes:
    """The same view's lag over time: by its offsets, by the age of what it misses, by a probe.

    ``lags`` is that of ``consistency.three_lags``. Raises :class:`ValueError` for no looks.
    """
    if lags.empty:
        raise ValueError("the lag at no time cannot be drawn")
    at = lags["at"]
    ax.plot(at, lags["by_offsets_ms"], "^", color=ORANGE, mec=INK, ms=5, label="offsets ÷ rate")
    ax.plot(at, lags["age_ms"], "s", color=SKY, mec=BLUE, ms=4, label="age of the oldest unseen")
    ax.plot(at, lags["probe_ms"], "-", color=VERMILLION, lw=2, label="commit to visible")
    shown = lags[["by_offsets_ms", "age_ms", "probe_ms"]].to_numpy(float)
    ax.set_ylim(0, 1.15 * float(np.nanpercentile(shown, 99.5)))
    ax.set_xlim(0, float(at.max()))
    ax.set_xlabel("since the begin of the window (s)")
    ax.set_ylabel("what somebody calls lag (ms)")
    behind = lags[lags["commits"] > 0]
    each = behind["offsets"].sum() / max(behind["commits"].sum(), 1)
    medians = (in_ms(float(lags[c].median())) for c in ("by_offsets_ms", "age_ms", "probe_ms"))
    ax.set_title(
        f"{each:.2f} offsets stand for one commit that nobody sees yet, the rest are markers;\n"
        "median by offsets {}, by age {}, by the probe {}".format(*medians),
        fontsize=11,
    )
    return finish(ax)


def two_clocks(waits: pd.DataFrame, ax: Axes) -> Axes:
    """How long each request waited: by the clock of who sent it late, and by the timetable.

    ``waits`` has ``at`` (when it was intended, s), ``from_sent_ms`` and ``from_intended_ms``.
    Raises :class:`ValueError` for no requests.
    """
    if waits.empty:
        raise ValueError("the waits of no request cannot be drawn")
    honest: Any = {"color": VERMILLION, "lw": 1.5, "ms": 5, "mec": INK}
    ax.plot(waits["at"], waits["from_intended_ms"], "s-", label="from the timetable", **honest)
    ax.plot(
        waits["at"], waits["from_sent_ms"], "o", color=SKY, mec=BLUE, ms=5, label="from sending"
    )
    ax.set_ylim(0, 1.1 * float(waits["from_intended_ms"].max()))
    ax.set_xlabel("when it was to be sent (s)")
    ax.set_ylabel("until the reply (ms)")
    longest = waits["from_intended_ms"].max()
    naive, true = (
        int((waits[c] > longest / 2).sum()) for c in ("from_sent_ms", "from_intended_ms")
    )
    ax.set_title(
        f"The stall held up {true} of {len(waits)} requests by more than {in_ms(longest / 2)};\n"
        f"who looks at the clock only when he sends sees {naive}",
        fontsize=11,
    )
    return finish(ax)


def foretold(
    lag_ms: NDArray[np.float64], measured_ms: NDArray[np.float64], rate: float, ax: Axes
) -> Axes:
    """What a model says of another load, beside what was measured: both to the later end, in ms.

    Raises :class:`ValueError` for no lags.
    """
    if not len(lag_ms) or not len(measured_ms):
        raise ValueError("the visibility at no time cannot be drawn")
    looks = ((measured_ms, BLUE, "-", "measured"), (lag_ms, VERMILLION, "-.", "the model"))
    most = max(float(np.quantile(ms[np.isfinite(ms)], 0.99)) for ms, *_ in looks)
    t_ms = np.linspace(0, 1.2 * most, 300)
    for ms, color, style, label in looks:
        share = np.searchsorted(np.sort(ms), t_ms, side="right") / len(ms)
        ax.plot(t_ms, 100 * share, style, color=color, lw=2, label=label)
    ax.set_xlim(t_ms[0], t_ms[-1])
    ax.set_ylim(0, 104)
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("the read comes so long after “committed” (ms)")
    ax.set_ylabel("reads that see the write")
    half, was = float(np.median(lag_ms)), float(np.median(measured_ms))
    ax.set_title(
        f"At {digits(rate)} commands a second half of the writes would be visible after "
        f"{in_ms(half)};\nthe model believes in {half / was:.1f} times what was measured",
        fontsize=11,
    )
    return finish(ax)
