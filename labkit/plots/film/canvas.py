"""The canvas of a film: SVG elements, and the keyframes of those that move."""

from __future__ import annotations

import hashlib
from xml.sax.saxutils import escape

from labkit.plots.film.trace import INSTANTS, Trace
from labkit.plots.film.words import clean

WIDTH, HEIGHT = 900, 456
RUN, HOLD = 7.0, 2.5  #: seconds: the trace takes about RUN, then its end stands still

INK, GREY, PALE = "#1b1b1b", "#555555", "#b5b5b5"
BOLD, MIDDLE, MUTED = ' font-weight="700"', ' text-anchor="middle"', f' fill="{GREY}"'

# The left edges of the stations; the widths of a box, a topic, the view and a gap between them.
CLIENT, COMMANDS, HANDLER, EVENTS, PROJECTOR, VIEW = 24, 133, 316, 439, 622, 745
BOX, TOPIC, WIDE, GAP = 92, 152, 131, 31
# The top and the height of the boxes, and the height at which the message enters them.
TOP, TALL, DOCK = 130, 78, 193


class Canvas:
    """Collects the elements and keyframes of one film, and maps time to the loop.

    Raises :class:`ValueError` for a trace whose instants are missing or run backwards.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.names = [name for name in INSTANTS if name in trace.instants]
        self.times = [trace.instants[name] - trace.instants[self.names[0]] for name in self.names]
        if self.names != list(INSTANTS[: max(len(self.names), 3)]):
            raise ValueError(f"a film needs {', '.join(INSTANTS[:3])}, ..., got {self.names}")
        if self.times != sorted(self.times):
            raise ValueError(f"instants must not run backwards, got {trace.instants}")
        if not 0 <= trace.partition < trace.partitions:
            raise ValueError(
                f"partition must be 0 to {trace.partitions - 1}, got {trace.partition}"
            )
        self.total = max(self.times[-1], 1)
        # Two significant digits are easy to read; the film runs at exactly that speed.
        self.slower = float(f"{RUN * 1e9 / self.total:.2g}")
        self.loop = self.slower * self.total / 1e9 + HOLD
        # All films on a page share one style sheet, so each film prefixes its names.
        self.ns = "film-" + hashlib.sha256(ascii(trace).encode()).hexdigest()[:12]
        first = max(0, min(trace.partition - 2, trace.partitions - 5))
        self.lanes = range(first, min(first + 5, trace.partitions))
        self.parts: list[str] = []
        self.css: list[str] = []

    def text(self, x: float, y: float, text: str, style: str = "", size: int = 12) -> None:
        """A line of text; ``style`` is further attributes, each after a blank."""
        text = escape(clean(text))
        self.parts.append(f'<text x="{x:.6g}" y="{y:g}" font-size="{size}"{style}>{text}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """A box with round corners."""
        size = f'width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" {size} rx="5" {style}/>')

    def percent(self, time: float) -> float:
        """The percentage of the loop that shows ``time`` (ns since the first instant)."""
        return 100 * (1 - HOLD / self.loop) * time / self.total

    def animate(self, *frames: tuple[float, str]) -> str:
        """The attributes of an element that passes through ``frames``: (ns, CSS)."""
        name = f"{self.ns}-{len(self.css)}"
        steps = "".join(f"{self.percent(time):.3f}%{{{css}}}" for time, css in frames)
        steps += f"100%{{{frames[-1][1]}}}"
        rule = f"#{name}{{animation:{name} {self.loop:.3f}s linear infinite}}"
        self.css.append(f"@keyframes {name}{{{steps}}}{rule}")
        return f' id="{name}"'

    def appear(self, time: float, before: int = 0) -> str:
        """The attributes of an element that appears at ``time`` (``before`` 1: disappears)."""
        hidden, shown = f"opacity:{before}", f"opacity:{1 - before}"
        return self.animate((0, hidden), (time, hidden), (time + self.total / 500, shown))

    def lane(self, partition: int) -> float:
        """The upper edge of a partition; the trace's own partition is taller."""
        top = TOP + TALL / 2 - 11 * len(self.lanes) - 15
        return top + 22 * (partition - self.lanes[0]) + 34 * (partition > self.trace.partition)
