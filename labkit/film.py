"""The film of one message: its real trace as an SVG that CSS alone sets in motion.

No script, font or other file: the picture also moves where it is shown as an image, which is how
JupyterLab shows it. What an element looks like without its animation is the end of the film, so a
reader who asked for reduced motion, and a printer, get that.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

Point = tuple[float, float]

WIDTH, HEIGHT = 900, 440
RUN, HOLD = 7.0, 2.5  #: seconds of film: about this long for the trace, then the end stands still
INSTANTS = ("sent", "polled", "decided", "fetched", "applied")

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
VERMILLION, INK, GREY, LINE = "#D55E00", "#1b1b1b", "#555555", "#b5b5b5"

#: What happens between an instant and the one before it, and the colour of its bar.
STAGES = {
    "polled": ("waits in Kafka for the handler", SKY),
    "decided": ("state, duplicate check, decide", ORANGE),
    "fetched": ("Kafka transaction, way to the reader", GREEN),
    "applied": ("MongoDB: view and checkpoint", PURPLE),
}
#: The mark on a commit's glyph, and the glyph's colour. A mark, since colour alone says nothing.
MARKS = {
    "accepted": ("M-4 0l3 3 5-6", GREEN),
    "refused": ("M-3-3l6 6M3-3l-6 6", VERMILLION),
    "repeated": ("M-4-2h8M-4 2h8", PURPLE),
}
# Left edges and widths of the six stations, and the height of the line along which boxes pass it on
CLIENT, COMMANDS, HANDLER = (24, 78), (133, 152), (316, 92)
EVENTS, PROJECTOR, VIEW = (439, 152), (622, 92), (745, 131)
TOP, BOTTOM, DOCK = 128, 206, 191
AXIS, BAR, LEGEND = (32, 868), (320, 340), 362


class Trace(msgspec.Struct, frozen=True):
    """Where one command went, and when.

    ``instants`` are monotonic nanoseconds of one host, keyed ``sent, polled, decided, fetched,
    applied``; the last ones may be missing. ``version`` is the stream's, after the command.
    """

    stream: str
    command: str
    events: tuple[str, ...]
    outcome: str
    partitions: int
    partition: int
    command_offset: int
    event_offset: int
    version: int
    instants: dict[str, int]


class Film:
    """The animated SVG of a trace; a notebook shows it when it is a cell's last value.

    Raises :class:`ValueError` for a trace whose instants are missing or run backwards.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.svg = _Drawing(trace).svg()

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the SVG, which a browser opens and a page includes as an image."""
        path = Path(path)
        path.write_text(self.svg, encoding="utf-8")
        return path


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper estimate, in user units, of the width of ``text`` in any common sans-serif font."""
    em = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF":
            em += 1.1
        elif char in "mwMW@%…—→":
            em += 1.0
        elif char in "ijlt.,:;'|!()[] ":
            em += 0.4
        else:
            em += 0.75 if char.isupper() or not char.isascii() else 0.6
    return em * size * (1.08 if bold else 1)


def _clean(text: str) -> str:
    """``text`` without what XML forbids, and without marks that turn the direction of writing."""
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)


def _fit(text: str, width: float, size: float, bold: bool = False) -> str:
    """``text``, cut to ``width`` user units."""
    text = _clean(text)
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


def _ms(nanoseconds: float) -> str:
    """Milliseconds, with the digits that a reader can use."""
    ms = nanoseconds / 1e6
    return f"{ms:,.{0 if ms >= 1000 else 1 if ms >= 100 else 2 if ms >= 1 else 3}f}"


class _Drawing:
    """Collects the elements, and the keyframes of those that move."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.names = [name for name in INSTANTS if name in trace.instants]
        self.times = [trace.instants[name] - trace.instants[self.names[0]] for name in self.names]
        if self.names != list(INSTANTS[: max(len(self.names), 3)]):
            raise ValueError(f"a film needs {', '.join(INSTANTS[:3])}, got {self.names}")
        if self.times != sorted(self.times):
            raise ValueError(f"instants must not run backwards, got {trace.instants}")
        if not 0 <= trace.partition < trace.partitions:
            raise ValueError(f"partition {trace.partition} of {trace.partitions} does not exist")
        self.total = max(self.times[-1], 1)
        slower = RUN * 1e9 / self.total
        # Two digits are what a reader remembers; the film then runs at exactly that speed.
        self.slower = float(f"{slower:.2g}")
        self.run = self.slower * self.total / 1e9
        # A page that shows two films has one style sheet for both: each has names of its own.
        self.ns = "film-" + hashlib.sha256(msgspec.json.encode(repr(trace))).hexdigest()[:10]
        self.parts: list[str] = []
        self.css: list[str] = []
        self.moving = 0

    def svg(self) -> str:
        """The whole document."""
        self.header()
        self.stations()
        self.message()
        self.axis()
        self.legend()
        trace, ns = self.trace, self.ns
        title = escape(f"{_clean(trace.command)} for {_clean(trace.stream)[:200]}: {trace.outcome}")
        style = (
            f"#{ns} text{{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',"
            f"Arial,sans-serif;white-space:pre}}@media screen and "
            f"(prefers-reduced-motion:no-preference){{{''.join(self.css)}}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" id="{ns}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" style="max-width:100%;height:auto" role="img" '
            f'aria-labelledby="{ns}-title {ns}-desc"><title id="{ns}-title">{title}</title>'
            f'<desc id="{ns}-desc">{escape(self.description())}</desc><style>{style}</style>'
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="#ffffff" '
            f'stroke="{LINE}"/>{"".join(self.parts)}</svg>\n'
        )

    def description(self) -> str:
        """The film in words."""
        trace = self.trace
        stages = "; ".join(
            f"{a} to {b} {_ms(end - start)} ms"
            for (a, b), (start, end) in zip(pairwise(self.names), pairwise(self.times), strict=True)
        )
        return (
            f"The command went to partition {trace.partition} of {trace.partitions}, offset "
            f"{trace.command_offset}. The handler's commit, {trace.outcome}, is in the same "
            f"partition of the events topic, offset {trace.event_offset}, version "
            f"{trace.version}. {stages}. Between two instants the message is drawn at even speed."
        )

    # Elements --------------------------------------------------------------------------------

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        *,
        fill: str = INK,
        anchor: str = "start",
        bold: bool = False,
        extra: str = "",
    ) -> None:
        """A line of text whose baseline starts, is centred or ends at ``x, y``."""
        weight = ' font-weight="700"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{fill}"{weight}{extra}>{escape(text)}</text>'
        )

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """A rounded box."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" {style}/>'
        )

    def percent(self, time: float) -> float:
        """The share of the loop at which ``time``, in ns since the first instant, is shown."""
        return 100 * time / self.total * self.run / (self.run + HOLD)

    def animate(self, keyframes: str) -> str:
        """The attribute of an element that moves by ``keyframes``, once a loop."""
        self.moving += 1
        name = f"{self.ns}-{self.moving}"
        self.css.append(
            f"@keyframes {name}{{{keyframes}}}#{name}{{animation:{name} "
            f"{self.run + HOLD:.3f}s linear infinite}}"
        )
        return f' id="{name}"'

    def appear(self, time: float) -> str:
        """The attribute of an element that appears at ``time`` and stays."""
        at = self.percent(time)
        return self.animate(f"0%,{at:.3f}%{{opacity:0}}{at + 1:.3f}%,100%{{opacity:1}}")
