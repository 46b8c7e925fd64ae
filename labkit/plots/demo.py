"""The two plots of the demo: orders a month, and the distribution of the consistency lag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from labkit.plots.style import (
    BLUE,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Picture,
    digits,
    finish,
    in_ms,
    require,
)

Lags = NDArray[np.float64]


#: The marked percentiles, each with its own marker: readers need more than a colour.
PERCENTILES = {50: "o", 95: "s", 99: "^"}


def orders_by_month(months: pd.DataFrame, ax: Axes) -> Axes:
    """Orders a month in the views, against the raw file.

    ``months`` has a row for each month: ``month`` ("1997-01"), ``orders`` (from the views),
    ``expected_orders`` (counted in the file) and ``cents`` (revenue, from the views). A month that
    is missing on one side counts as 0 there.
    """
    require(months, "month")
    months = months.sort_values("month").fillna({"orders": 0, "expected_orders": 0, "cents": 0})
    names = [str(month) for month in months["month"]]
    orders, expected = months["orders"].to_numpy(), months["expected_orders"].to_numpy()
    at, high = np.arange(len(names)), np.maximum(orders, expected)
    ax.bar(at, orders, color=SKY, edgecolor=BLUE, hatch="//", label="MongoDB views")
    ax.plot(at, expected, "D", color=ORANGE, mec=INK, label="pandas over the raw file")
    wrong = orders != expected
    if wrong.any():
        ax.plot(at[wrong], high[wrong], "x", color=VERMILLION, ms=14, mew=3, label="they differ")
    every = -(-len(names) // 7)
    ax.set_xticks(at[::every], names[::every])
    # The limit keeps the bar of a single month narrow.
    ax.set_xlim(-0.7, max(len(names), 6) - 0.3)
    ax.set_ylim(0, 1.1 * max(float(high.max()), 1))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("month of the purchase")
    ax.set_ylabel("orders a month")
    agree = "every month equals the raw file"
    if wrong.any():
        agree = f"{wrong.sum()} of {len(names)} months differ from the raw file"
    best = int(orders.argmax())
    ax.set_title(
        f"{orders.sum():,.0f} orders worth ${months['cents'].sum() / 100:,.2f}, {agree};\n"
        f"the best month was {names[best]} with {orders[best]:,.0f} orders",
        fontsize=11,
    )
    return finish(ax)


def lag_distribution(lag_ms: Sequence[float] | pd.DataFrame, ax: Axes, load: str = "") -> Axes:
    """The distribution of the consistency lag: how long a committed write stays invisible.

    ``lag_ms`` has one lag in ms for each write, or it is a frame with ``stale_ms`` (the last read
    that missed the write) and ``fresh_ms`` (the first that saw it). The true lag lies between the
    two, so their distributions bound a band; the title gives the upper bound. A write that was
    never seen (``fresh_ms`` infinite or missing) counts as later than any other. ``load`` describes
    the load for the title.
    """
    if framed := isinstance(lag_ms, pd.DataFrame):
        # A write that no read missed may have been visible immediately.
        stale = _sorted(lag_ms["stale_ms"], missing=0)
        fresh = _sorted(lag_ms["fresh_ms"], missing=np.inf)
    else:
        stale = fresh = _sorted(lag_ms, missing=np.inf)
    require(fresh, "write")
    _scale(ax, stale, fresh)
    line: Any = {"color": BLUE, "lw": 1.8, "drawstyle": "steps-post"}
    share = 100 * np.arange(len(fresh) + 1) / len(fresh)
    if framed:
        ends, name = (_steps(stale), np.minimum(_steps(fresh), 1e12)), "became visible in here"
        ax.fill_betweenx(share, *ends, step="pre", color=SKY, alpha=0.4, lw=0, label=name)
        ax.plot(_steps(stale), share, "--", label="last stale read", **line)
    name = "first fresh read" if framed else "became visible"
    ax.plot(_steps(fresh), share, "-", label=name, **line)
    for p, marker in PERCENTILES.items():
        first, last = _percentile(stale, p), _percentile(fresh, p)
        name = f"p{p}: {in_ms(last)}"
        if not np.isfinite(last):
            name = f"p{p}: later than {in_ms(first)}" if np.isfinite(first) else f"p{p}: never seen"
        elif framed:
            name = f"p{p}: {in_ms(first)[:-3]} to {in_ms(last)}"
        ax.vlines([last], 0, p, color=INK, lw=0.8, ls=":")
        ax.plot([last], [p], marker, color=ORANGE, mec=INK, ms=9, zorder=3, label=name)
    ax.set_ylim(0, 104)
    scale = ", log scale" if ax.get_xscale() == "log" else ""
    ax.set_xlabel(f"from the reply “committed” to visible in a query (ms{scale})")
    ax.set_ylabel(f"writes visible by then (% of {len(fresh):,})")
    ax.set_title(_finding(fresh) + (f",\n{load}" if load else ""), fontsize=11)
    return finish(ax)


def demo_figure(
    months: pd.DataFrame,
    lag_ms: Sequence[float] | pd.DataFrame,
    *,
    client: str,
    commands_per_second: float,
    customers: int | None = None,
    lag_rate: float | None = None,
    sustained: bool | None = None,
) -> Picture:
    """The two plots of the demo, side by side.

    ``lag_rate`` is the rate, in commands a second, at which the lag was measured; ``sustained``:
    whether the backlog stayed level at that rate.
    """
    figure = Picture(figsize=(13, 5.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    orders_by_month(months, left)
    load = "" if lag_rate is None else f"at {digits(lag_rate)} commands a second"
    if load and sustained is not None:
        load += ", which is sustained" if sustained else ", which is not sustained: a queue"
    lag_distribution(lag_ms, right, load)
    whose = "" if customers is None else f" of {customers:,} customer{'s' * (customers != 1)}"
    figure.suptitle(
        f"{months['orders'].sum():,.0f} purchases{whose} as commands through Kafka into MongoDB "
        f"views: {digits(commands_per_second)} a second with {client}",
        fontweight="bold",
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def _sorted(values: Sequence[float] | pd.Series[float], missing: float) -> Lags:
    lags = np.asarray(values, dtype=np.float64)
    return np.sort(np.where(np.isnan(lags), missing, lags))


def _percentile(lags: Lags, p: int) -> float:
    """A measured lag; interpolation would fail for infinite lags."""
    return float(lags[-(-len(lags) * p // 100) - 1])


def _finding(fresh: Lags) -> str:
    half, most = _percentile(fresh, 50), _percentile(fresh, 99)
    never = int(np.isinf(fresh).sum())
    lines = [
        f"Half of the writes are visible within {in_ms(half)}",
        f"99 % within {in_ms(most)}",
    ]
    if never:
        lines = lines[: int(np.isfinite(half)) + int(np.isfinite(most))]
        lines.append(f"{never:,} of {len(fresh):,} writes were never seen")
    return ",\n".join(lines)


def _steps(lags: Lags) -> Lags:
    """Repeat the smallest lag, so that the distribution starts at 0 %."""
    return np.concatenate([lags[:1], lags])


def _scale(ax: Axes, stale: Lags, fresh: Lags) -> None:
    """Use a logarithmic axis if a few slow writes would compress the others."""
    seen = fresh[np.isfinite(fresh) & (fresh > 0)]
    if not len(seen):
        seen = np.ones(1)
    if seen[-1] < 8 * seen[len(seen) // 2]:
        ax.set_xlim(0, 1.05 * seen[-1])
        return
    positive = stale[stale > 0]
    left = min(positive[0], seen[0]) if len(positive) else seen[0]
    ax.set_xscale("log", nonpositive="clip")
    # A stale read near zero would stretch the axis by decades.
    left = max(left, seen[0] / 5)
    ax.set_xlim(0.8 * left, 1.3 * seen[-1])
    wide = seen[-1] > 1000 * left
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
