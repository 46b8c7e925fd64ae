"""TODO."""

from __future__ import annotations

import io
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, SKY, ORANGE, VERMILLION, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#222222"


class Picture(Figure):
    """A figure that a notebook shows although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


OFFSET: Any = {"textcoords": "offset points", "fontsize": 9, "color": INK}


def digits(value: float) -> str:
    """Three digits are all that a measurement on one machine is worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_ms(lag: float) -> str:
    """A lag with three digits and its unit."""
    return f"{digits(lag)} ms"


def finish(ax: Axes, grid: Literal["x", "y"] = "y") -> Axes:
    """A light grid behind the data, and the legend below, where it hides none of them."""
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color="#dddddd")
    ax.spines[["top", "right"]].set_visible(False)
    below = (0.5, -0.13)
    ax.legend(loc="upper center", bbox_to_anchor=below, ncols=3, frameon=False, fontsize=9)
    return ax
