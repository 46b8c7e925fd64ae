"""Plots of the write side: batches, the states of a stream, a transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from labkit.plots.style import BLUE, INK, ORANGE, SKY, VERMILLION, finish, require


def batch_sizes(batches: pd.DataFrame, ax: Axes) -> Axes:
    """The speed of each batch size, one bar each.

    ``batches`` has ``batch size`` and ``commands a second``, the smallest batch first; the labels
    show the speed relative to it.
    """
    require(batches, "batch")
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
    """The amount of a stream (in cents) at some versions, and the versions of its snapshots."""
    require(versions, "version")
    amounts = np.asarray(cents, float) / 100
    ax.plot(versions, amounts, color=BLUE, marker="o", ms=4, label="balance, folded from events")
    for number, version in enumerate(snapshots):
        name = "snapshot" if number == 0 else "_nolegend_"
        ax.axvline(version, color=ORANGE, ls="--", lw=2, label=name)
    ax.set_xlabel("version of the stream")
    ax.set_ylabel("balance (whole units)")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_title(
        f"All {versions[-1]:,} states can be read; "
        f"from version {snapshots[0]:,} on, a snapshot shortens the replay"
        if snapshots
        else f"All {versions[-1]:,} states can be read",
        fontsize=11,
    )
    finish(ax)
    ax.legend(loc="upper left", frameon=False, fontsize=9)
    return ax


def money_on_its_way(steps: pd.DataFrame, ax: Axes) -> Axes:
    """The location of the money after each step of a transfer: one stacked bar a step.

    ``steps`` has a row for each step (the index is its name) and a column for each location, in
    cents.

    """
    require(steps, "step")
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
        f"The sum is {total:,.0f} cents at every step"
        if kept
        else f"{total:,.0f} cents at the start, {bottom[-1]:,.0f} at the end",
        fontsize=11,
    )
    finish(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=9)
    return ax
