"""The style that all plots share: colours, numbers, legend and grid."""

from __future__ import annotations

import io
from collections.abc import Sized
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, SKY, ORANGE, VERMILLION, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#222222"
GREEN, PURPLE = "#009E73", "#CC79A7"


class Picture(Figure):
    """A figure without pyplot that a notebook can display."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


OFFSET: Any = {"textcoords": "offset points", "fontsize": 9, "color": INK}


def require(data: Sized, what: str) -> None:
    """Raise ``ValueError`` if there is nothing to draw."""
    if not len(data):
        raise ValueError(f"got no {what} to draw: pass at least one")


def digits(value: float) -> str:
    """Format with three significant digits, the precision of a measurement on one machine."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_ms(lag: float) -> str:
    """Format milliseconds with three significant digits and the unit."""
    return f"{digits(lag)} ms"


def finish(ax: Axes, grid: Literal["x", "y"] = "y") -> Axes:
    """Add a light grid behind the data, and a legend below the plot."""
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color="#dddddd")
    ax.spines[["top", "right"]].set_visible(False)
    below = (0.5, -0.13)
    ax.legend(loc="upper center", bbox_to_anchor=below, ncols=3, frameon=False, fontsize=9)
    return ax
