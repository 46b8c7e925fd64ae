"""The plot of an elastic run: arrivals, capacity and lag over time, one column an arm."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from labkit.plots.style import (
    BLUE,
    INK,
    OFFSET,
    SKY,
    VERMILLION,
    Picture,
    digits,
    require,
)

#: Inches of a column.
WIDTH = 3.1
#: A number of workers that lasts for a smaller share of the time has no room for its label.
SHORTEST = 0.04


def elasticity(
    courses: pd.DataFrame, arms: Sequence[str], *, capacity: float, bound_s: float
) -> Picture:
    """Small multiples: one column for each arm, on common axes.

    The upper row shows the arrivals and, in the same unit, the capacity of the workers: where the
    arrivals are above it, the backlog grows. The lower row shows the lag of the oldest command.

    Args:
        courses: one run of each arm: ``arm``, ``at_s``, ``lag_s``, ``workers``, ``arrivals_per_s``.
        arms: which to draw, in order.
        capacity: commands a second of one worker.
        bound_s: the lag above which a worker is added.
    """
    require(courses, "course")
    figure = Picture(figsize=(WIDTH * len(arms) + 0.9, 5.8), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(arms), sharex=True, sharey="row", squeeze=False)
    chosen = [courses[courses["arm"] == arm] for arm in arms]
    for number, (arm, mine) in enumerate(zip(arms, chosen, strict=True)):
        require(mine, f"course of {arm!r}")
        _work(axes[0, number], mine, capacity)
        _lag(axes[1, number], mine, bound_s)
        axes[0, number].set_title(
            f"{arm}\n{digits(worker_seconds(mine))} worker seconds,\n"
            f"lag above {bound_s:g} s for {digits(above(mine, bound_s))} s",
            fontsize=10,
        )
    drawn = courses[courses["arm"].isin(arms)]
    most = max(float(drawn["arrivals_per_s"].max()), float(drawn["workers"].max()) * capacity)
    axes[0, 0].set_ylim(0, 1.12 * most)
    axes[1, 0].set_ylim(0, 1.05 * max(float(drawn["lag_s"].max()), 1.2 * bound_s))
    axes[1, 0].set_xlim(0, float(drawn["at_s"].max()))
    axes[0, 0].set_ylabel("commands a second")
    axes[1, 0].set_ylabel("age of the oldest\ninvisible command (s)")
    for ax in axes[1]:
        ax.set_xlabel("time (s)")
    handles, labels = [], []
    for ax in axes[:, 0]:
        of, named = ax.get_legend_handles_labels()
        handles += of
        labels += named
    many = 5 if len(arms) > 2 else 3  # or it is wider than the figure
    figure.legend(
        handles, labels, loc="outside lower center", ncols=many, frameon=False, fontsize=9
    )
    if title := _finding(arms, chosen, bound_s):
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _finding(arms: Sequence[str], courses: Sequence[pd.DataFrame], bound_s: float) -> str:
    """The first arm whose workers change, against the dearest and the slowest of the others."""
    elastic = [n for n, course in enumerate(courses) if course["workers"].nunique() > 1]
    others = [n for n in range(len(arms)) if n not in elastic]
    if not elastic or not others:
        return ""
    n = elastic[0]
    dear = max(others, key=lambda other: worker_seconds(courses[other]))
    slow = max(others, key=lambda other: above(courses[other], bound_s))
    share = worker_seconds(courses[n]) / worker_seconds(courses[dear])
    return (
        f"{arms[n]}: {100 * share:.0f} % of the worker seconds of “{arms[dear]}”,\n"
        f"and a lag above {bound_s:g} s for {digits(above(courses[n], bound_s))} s instead of "
        f"{digits(above(courses[slow], bound_s))} s with “{arms[slow]}”"
    )


def worker_seconds(course: pd.DataFrame) -> float:
    """The area under the number of workers."""
    return float((course["workers"].iloc[:-1] * course["at_s"].diff().iloc[1:].to_numpy()).sum())


def above(course: pd.DataFrame, bound_s: float) -> float:
    """Seconds with a lag above the bound."""
    return float((course["lag_s"] > bound_s).mean() * course["at_s"].iloc[-1])


def _work(ax: Axes, course: pd.DataFrame, capacity: float) -> None:
    at, workers = course["at_s"], course["workers"]
    ax.fill_between(
        at, course["arrivals_per_s"], color=SKY, alpha=0.5, lw=0, step="post", label="arrivals"
    )
    ax.step(
        at, workers * capacity, where="post", color=INK, lw=1.8, label="capacity of the workers"
    )
    changed = workers.ne(workers.shift())
    instants = [*at[changed], float(at.iloc[-1])]
    room = SHORTEST * float(at.iloc[-1])
    for since, until, count in zip(instants, instants[1:], workers[changed], strict=False):
        if until - since >= room:
            ax.annotate(f"{count}", (since, count * capacity), (2, 3), **OFFSET)
    _grid(ax)


def _lag(ax: Axes, course: pd.DataFrame, bound_s: float) -> None:
    at, lag = course["at_s"], course["lag_s"]
    ax.fill_between(
        at,
        lag,
        bound_s,
        where=lag > bound_s,
        color=VERMILLION,
        alpha=0.3,
        lw=0,
        label="above the bound",
    )
    ax.plot(at, lag, color=BLUE, lw=1.6, label="lag")
    ax.axhline(bound_s, color=VERMILLION, lw=1.2, ls="--", label="a worker is added above")
    _grid(ax)


def _grid(ax: Axes) -> None:
    ax.set_axisbelow(True)
    ax.grid(axis="y", color="#dddddd")
    ax.spines[["top", "right"]].set_visible(False)
    ax.yaxis.set_major_locator(MaxNLocator(5))
