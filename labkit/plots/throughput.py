"""Plots of speed: throughput against a factor, the scalability law, Little's law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from labkit.plots.law import Law, Scaling
from labkit.plots.style import (
    BLUE,
    INK,
    OFFSET,
    ORANGE,
    SKY,
    VERMILLION,
    Picture,
    digits,
    finish,
    require,
)

#: The accepted relative difference in Little's law.
TOLERANCE = 0.05


def throughput(runs: pd.DataFrame, arms: pd.DataFrame, ax: Axes) -> Axes:
    """Commands a second in each arm of a sweep: its runs, their median and interval.

    ``runs`` and ``arms`` are those of ``Swept``. A run with a red checker is a cross and does not
    count.
    """
    require(runs, "run")
    places = {name: place for place, name in enumerate(arms["arm"])}
    at = runs["arm"].map(places).to_numpy(float)
    speed, green = runs["visible_per_second"].to_numpy(float), runs["green"].to_numpy(bool)
    ax.plot(speed[green], at[green] - 0.22, "o", color=SKY, mec=BLUE, ms=5, label="a run")
    if not green.all():
        style: Any = {"color": VERMILLION, "ms": 9, "mew": 2.5}
        ax.plot(
            speed[~green], at[~green] - 0.22, "x", label="thrown out: a checker is red", **style
        )
    most = float(np.nanmax(speed))
    for place, row in enumerate(arms.to_dict("records")):
        middle, low, high = (float(row[n]) for n in ("commands_per_second", "low", "high"))
        if math.isnan(middle):
            red = sorted({n for s in runs["red"][runs["arm"] == row["arm"]] for n in s.split(", ")})
            ax.annotate(f"no rate: {', '.join(red)} red", (0, place), (6, -4), **OFFSET)
            continue
        name = f"{MEDIAN} (confidence {arms['level'].min():.1%})"
        first = "_nolegend_" if ax.get_legend_handles_labels()[1].count(name) else name
        ax.plot([low, high], [place, place], color=BLUE, lw=3, solid_capstyle="round", label=first)
        ax.plot([middle], [place], "D", color=ORANGE, mec=INK, ms=8, zorder=3)
        end = middle if math.isnan(high) else high
        times = "" if place == 0 or math.isnan(row["ratio"]) else f"  (× {row['ratio']:,.3g})"
        ax.annotate(f"{digits(middle)}{times}", (end, place), (10, -4), **OFFSET)
    ax.set_yticks(list(places.values()), list(places))
    ax.set_ylim(len(places) - 0.4, -0.6)
    ax.set_xlim(0, 1.3 * most)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("commands a second, from the topic to the view")
    ax.set_title(_fastest(runs, arms), fontsize=11)
    return finish(ax, grid="x")


MEDIAN = "median and interval"


def _fastest(runs: pd.DataFrame, arms: pd.DataFrame) -> str:
    """The finding that the intervals allow."""
    counted = arms.dropna(subset=["commands_per_second"]).sort_values("commands_per_second")
    thrown = int(arms["thrown_out"].sum())
    lines = [f"{thrown} of {arms['runs'].sum()} runs thrown out by a checker"] if thrown else []
    if len(counted) > 1:
        slow, fast = counted.iloc[0], counted.iloc[-1]
        rates = runs.pivot(index="round", columns="arm", values="commands_per_second")
        times = (rates[fast["arm"]] / rates[slow["arm"]]).median()  # within a round
        apart = fast["low"] > slow["high"]
        lines.insert(
            0,
            f"{fast['arm']}: {times:.1f} times as fast as {slow['arm']}"
            if apart
            else "The intervals overlap: these runs show no difference",
        )
    return ",\n".join(lines) or "No arm has a rate"


def scalability(
    law: Law | Scaling, ax: Axes, runs: pd.DataFrame | None = None, most: int | None = None
) -> Axes:
    """The Universal Scalability Law: its curve, the ideal line, and the runs, if given.

    A ``Scaling`` (a fit) also has a band. ``runs`` has ``value`` (workers) and
    ``commands_per_second``; ``most`` is the number of workers on the axis.
    """
    fitted = law if isinstance(law, Scaling) else None
    curve = law.law if isinstance(law, Scaling) else law
    shown = None if runs is None else runs.dropna(subset=["commands_per_second"])
    measured = 1 if shown is None or shown.empty else int(shown["value"].max())
    end = most or max(4, math.ceil(1.35 * measured))
    n = np.linspace(1, end, 200)
    speeds = np.array([curve.at(workers) for workers in n])
    top = float(speeds.max())
    if fitted:
        low, high = zip(*(fitted.band(workers) for workers in n), strict=True)
        top = max(top, *high)
        name = f"{fitted.level:.0%} of the fits to resampled runs"
        ax.fill_between(n, low, high, color=SKY, alpha=0.4, lw=0, label=name)
    if shown is not None and len(shown):
        speed = shown["commands_per_second"].to_numpy(float)
        top = max(top, float(speed.max()))
        ax.plot(shown["value"], speed, "o", color=ORANGE, mec=INK, ms=6, label="a run", zorder=3)
    ax.plot(n, curve.rate * n, "--", color=INK, lw=1.2, label="ideal: N times one worker")
    ax.plot(n, speeds, "-", color=BLUE, lw=2.2, label="Universal Scalability Law")
    if curve.peak is not None and curve.peak <= end:
        ax.plot([curve.peak], [curve.at(curve.peak)], "v", color=BLUE, mec=INK, ms=10, zorder=4)
        ax.annotate("peak", (curve.peak, curve.at(curve.peak)), (0, 9), ha="center", **OFFSET)
    ax.set_xlim(0.8, end + 0.2)
    ax.set_ylim(0, 1.25 * top)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("workers N (N handlers and N projectors)")
    ax.set_ylabel("commands a second")
    ax.set_title(
        _effect_of_workers(curve, fitted, measured if shown is not None else end), fontsize=11
    )
    return finish(ax)


def _effect_of_workers(law: Law, fitted: Scaling | None, measured: int) -> str:
    factors = f"σ = {law.sigma:.2f}, κ = {law.kappa:.3f}"
    if law.peak is None:
        found = "Throughput grows with every worker: no peak"
        if law.sigma > 0:
            found = f"The gain of each worker falls: at most {1 / law.sigma:.1f} times one worker"
    elif law.peak <= 1.05:
        found = "One worker is best: each additional worker reduces the throughput"
    elif law.peak > measured:
        found = f"The peak, {law.peak:.1f} workers, lies beyond the measured range"
    else:
        gain = law.at(law.peak) / law.rate
        found = f"The peak is at {law.peak:.1f} workers: {gain:.1f} times one worker"
    off = f"; the runs are {fitted.error:.0%} off the curve" if fitted else ""
    return f"{found}\n({factors}{off})"


def littles_law(laws: pd.DataFrame, ax: Axes) -> Axes:
    """L = lambda W: the counted commands against rate times time, one point for each run.

    ``laws`` has one row for each run: ``L``, ``lambda_W`` and ``edges`` (commands in the system;
    ``load/steady.py``), ``lambda`` (commands a second), ``W_ms`` and ``difference`` (as a fraction
    of L).
    """
    require(laws, "run")
    product = (laws["lambda_W"] + laws["edges"]).to_numpy(float)
    number = laws["L"].to_numpy(float)
    ends = np.array([0.5 * min(product.min(), number.min()), 2 * max(product.max(), number.max())])
    low, high = (1 - TOLERANCE) * ends, (1 + TOLERANCE) * ends
    ax.fill_between(ends, low, high, color=SKY, alpha=0.4, lw=0, label=f"within {TOLERANCE:.0%}")
    ax.plot(ends, ends, "--", color=INK, lw=1.2, label="L = λW")
    off = laws["difference"].to_numpy(float)
    kept = off <= TOLERANCE
    ax.plot(product[kept], number[kept], "o", color=BLUE, mec=INK, ms=9, label="a steady run")
    if not kept.all():
        style: Any = {"color": VERMILLION, "ms": 11, "mew": 3, "label": "thrown out"}
        ax.plot(product[~kept], number[~kept], "x", **style)
    for row, x in zip(laws.to_dict("records"), product, strict=True):
        words = f"{row['lambda']:,.0f} a second × {row['W_ms']:,.1f} ms"
        ax.annotate(words, (x, row["L"]), (12, -9), **OFFSET)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.set_xlabel("λW: rate times time in the system, and the window's edges (log scale)")
    ax.set_ylabel("L: commands in the system, counted (log scale)")
    worst = float(np.nanmax(off))
    found = f"Little's law holds in {kept.sum()} of {len(laws)} runs"
    if kept.all():
        found = f"Little's law holds: the worst of {len(laws)} runs is {worst:.1%} off"
    ax.set_title(found, fontsize=11)
    return finish(ax)


def new_ax(width: float = 8.5, height: float = 4.8) -> Axes:
    """An empty ``ax`` on a new picture; a notebook shows its ``figure``."""
    return Picture(figsize=(width, height), layout="constrained").add_subplot()
