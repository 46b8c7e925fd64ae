"""Plots of the consistency lag: its stages, its distribution, staleness, and its definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from labkit.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    digits,
    finish,
    in_ms,
    require,
)

LOOKS = ((SKY, "//"), (ORANGE, ""), (PURPLE, "xx"), (BLUE, ""), (GREEN, ".."), (VERMILLION, "\\\\"))
#: One bar stands for all reads that are further behind.
MOST_VERSIONS = 9
#: The instants on the way to the view; the reply comes during the fourth stage.
WAY = ("intended", "sent", "polled", "decided", "fetched", "applied", "visible")


def stages_of_the_way(sums: pd.DataFrame, ax: Axes) -> Axes:
    """The duration of each stage, and below them the total that the probe measured.

    ``sums`` is the result of ``consistency.adds_up``. The reply does not end a stage, because the
    projector reads the log independently of the client.
    """
    if sums.empty or sums.isna().to_numpy().any():
        raise ValueError("got no command with all stages to draw: pass at least one")
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
    ax.barh(1, middle["whole"], height=0.3, color="#dddddd", label="the total, by the probe")
    ax.plot(ends, [1, 1], "|-", color=INK, ms=14, label="its bounds")
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
        f"{share:.0f} % of the time to the view comes after the reply;\n"
        f"the stages add up to {in_ms(left)}, the probe measured {in_ms(float(middle['whole']))} "
        f"({100 * off:.1f} % difference)",
        fontsize=11,
    )
    return finish(ax, grid="x")


def t_visibility(seen: pd.DataFrame, ax: Axes) -> Axes:
    """The probability that a read sees the write, by its time after the reply, with both bounds.

    ``seen`` has ``t_ms``, ``at_least`` and ``at_most`` (``consistency.t_visibility``), and
    optionally ``model`` and ``independent`` for comparison.
    """
    require(seen, "time")
    t, low, high = (100 * seen[c].to_numpy(float) for c in ("t_ms", "at_least", "at_most"))
    t /= 100
    ax.fill_between(t, low, high, color=SKY, alpha=0.5, lw=0, label="measured range")
    ax.plot(t, low, "-", color=BLUE, lw=1.6, label="first look that saw it")
    ax.plot(t, high, "--", color=BLUE, lw=1.2, label="last look that missed it")
    lines = {
        "model": (VERMILLION, "-.", "the model"),
        "independent": (INK, ":", "independent stages"),
    }
    for name, (color, style, label) in lines.items():
        if name in seen:
            ax.plot(t, 100 * seen[name], style, color=color, lw=2, label=label)
    ax.set_xlim(t[0], t[-1])
    ax.set_ylim(0, 104)
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("time from the reply “committed” to the read (ms)")
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
    """How many versions behind the reads are: two bars for each number, one for each bound.

    ``shares`` is the result of ``consistency.k_staleness``.
    """
    require(shares, "read")
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
    ax.set_xlabel("number of versions that a read is behind")
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
    """The lag of a view over time: by offsets, by the age of the oldest unseen commit, by a probe.

    ``lags`` is the result of ``consistency.three_lags``.
    """
    require(lags, "time")
    at = lags["at"]
    ax.plot(at, lags["by_offsets_ms"], "^", color=ORANGE, mec=INK, ms=5, label="offsets ÷ rate")
    ax.plot(at, lags["age_ms"], "s", color=SKY, mec=BLUE, ms=4, label="age of the oldest unseen")
    ax.plot(at, lags["probe_ms"], "-", color=VERMILLION, lw=2, label="commit to visible")
    shown = lags[["by_offsets_ms", "age_ms", "probe_ms"]].to_numpy(float)
    ax.set_ylim(0, 1.15 * float(np.nanpercentile(shown, 99.5)))
    ax.set_xlim(0, float(at.max()))
    ax.set_xlabel("time since the start of the window (s)")
    ax.set_ylabel("lag, by three definitions (ms)")
    behind = lags[lags["commits"] > 0]
    each = behind["offsets"].sum() / max(behind["commits"].sum(), 1)
    medians = (in_ms(float(lags[c].median())) for c in ("by_offsets_ms", "age_ms", "probe_ms"))
    ax.set_title(
        f"{each:.2f} offsets stand for one invisible commit, because markers take offsets too;\n"
        "median by offsets {}, by age {}, by the probe {}".format(*medians),
        fontsize=11,
    )
    return finish(ax)


def two_clocks(waits: pd.DataFrame, ax: Axes) -> Axes:
    """The latency of each request: from its (late) sending, and from its scheduled time.

    ``waits`` has ``at`` (the scheduled time, s), ``from_sent_ms`` and ``from_intended_ms``.

    """
    require(waits, "request")
    honest: Any = {"color": VERMILLION, "lw": 1.5, "ms": 5, "mec": INK}
    ax.plot(waits["at"], waits["from_intended_ms"], "s-", label="from the scheduled time", **honest)
    ax.plot(
        waits["at"], waits["from_sent_ms"], "o", color=SKY, mec=BLUE, ms=5, label="from sending"
    )
    ax.set_ylim(0, 1.1 * float(waits["from_intended_ms"].max()))
    ax.set_xlabel("scheduled time (s)")
    ax.set_ylabel("latency until the reply (ms)")
    longest = waits["from_intended_ms"].max()
    naive, true = (
        int((waits[c] > longest / 2).sum()) for c in ("from_sent_ms", "from_intended_ms")
    )
    ax.set_title(
        f"The stall delayed {true} of {len(waits)} requests by more than {in_ms(longest / 2)};\n"
        f"a clock that starts at the sending shows only {naive}",
        fontsize=11,
    )
    return finish(ax)


def predicted_lag(
    lag_ms: NDArray[np.float64], measured_ms: NDArray[np.float64], rate: float, ax: Axes
) -> Axes:
    """The prediction of a model for another load, against the measurement (upper bounds, in ms)."""
    if not len(lag_ms) or not len(measured_ms):
        raise ValueError("got no lags to draw: pass at least one of each")
    looks = ((measured_ms, BLUE, "-", "measured"), (lag_ms, VERMILLION, "-.", "the model"))
    most = max(float(np.quantile(ms[np.isfinite(ms)], 0.99)) for ms, *_ in looks)
    t_ms = np.linspace(0, 1.2 * most, 300)
    for ms, color, style, label in looks:
        share = np.searchsorted(np.sort(ms), t_ms, side="right") / len(ms)
        ax.plot(t_ms, 100 * share, style, color=color, lw=2, label=label)
    ax.set_xlim(t_ms[0], t_ms[-1])
    ax.set_ylim(0, 104)
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("time from the reply “committed” to the read (ms)")
    ax.set_ylabel("reads that see the write")
    half, was = float(np.median(lag_ms)), float(np.median(measured_ms))
    ax.set_title(
        f"At {digits(rate)} commands a second the model predicts a median lag of {in_ms(half)},\n"
        + (f"{half / was:.1f} times the measured one" if was else "the measured one is 0"),
        fontsize=11,
    )
    return finish(ax)
