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

    # Parts of the picture ---------------------------------------------------------------------

    def header(self) -> None:
        """What this is, how it ended, and how fast it is shown."""
        trace = self.trace
        speed, way = (self.slower, "slower") if self.slower >= 1 else (1 / self.slower, "faster")
        self.text(24, 34, _fit(f"{trace.command} {trace.stream}", 560, 17, True), 17, bold=True)
        what = ", ".join(trace.events) or "no event"
        end = f"{trace.outcome}: {what}. {_ms(self.total)} ms from {self.names[0]} to "
        self.text(24, 55, _fit(end + self.names[-1], 600, 13), 13, fill=GREY)
        self.text(876, 34, f"shown {speed:,.10g} times {way}", 13, anchor="end", bold=True)
        self.parts.append(f'<g transform="translate(694 51)">{self.command_glyph()}</g>')
        self.text(708, 55, "command", 12, fill=GREY)
        self.parts.append(f'<g transform="translate(792 51)">{self.commit_glyph()}</g>')
        self.text(806, 55, "its commit", 12, fill=GREY)

    def command_glyph(self) -> str:
        """An envelope."""
        return (
            f'<rect x="-9" y="-6.5" width="18" height="13" rx="2" fill="{BLUE}" stroke="#fff"/>'
            '<path d="M-7-4l7 5 7-5" fill="none" stroke="#fff" stroke-width="1.6"/>'
        )

    def commit_glyph(self) -> str:
        """A disc with the mark of its outcome."""
        mark, colour = MARKS.get(self.trace.outcome, ("M-2.5-3v6M2.5-3v6", GREY))
        return (
            f'<circle r="8" fill="{colour}" stroke="#fff"/>'
            f'<path d="{mark}" fill="none" stroke="#fff" stroke-width="2"/>'
        )

    def lanes(self) -> list[int]:
        """The partitions that are drawn: at most five, ours among them."""
        first = min(max(self.trace.partition - 2, 0), max(self.trace.partitions - 5, 0))
        return list(range(first, min(first + 5, self.trace.partitions)))

    def lane_top(self, partition: int) -> float:
        """The upper edge of a partition; ours is taller, since a message passes through it."""
        lanes, ours = self.lanes(), self.trace.partition
        top = (TOP + BOTTOM - 22 * len(lanes) - 32) / 2 + 2
        return top + sum(22 if lane != ours else 54 for lane in lanes if lane < partition)

    def way(self) -> list[list[Point]]:
        """The way of the message, in one piece for each stage."""
        y = self.lane_top(self.trace.partition) + 39

        def through(a: Point, left: float, right: float, b: Point) -> list[Point]:
            return [a, (left - 31, DOCK), (left, y), (right, y), (right + 31, DOCK), b]

        view = 810.5 if self.trace.outcome == "accepted" else 690
        return [
            through((63, DOCK), COMMANDS[0], sum(COMMANDS), (338, DOCK)),
            [(338, DOCK), (386, DOCK)],
            through((386, DOCK), EVENTS[0], sum(EVENTS), (646, DOCK)),
            [(646, DOCK), (view, DOCK)],
        ]

    def stations(self) -> None:
        """Client, topics, handler, projector and view, with the line that joins them."""
        trace, way = self.trace, self.way()
        for left, width, name, work in (
            (*CLIENT, "Client", "sends"),
            (*HANDLER, "Handler", "decides"),
            (*PROJECTOR, "Projector", "applies"),
            (*VIEW, "", ""),
        ):
            self.rect(left, TOP, width, BOTTOM - TOP, f'fill="#f6f6f6" stroke="{GREY}"')
            self.text(left + width / 2, TOP + 22, name, 13, anchor="middle", bold=True)
            self.text(left + width / 2, TOP + 39, work, 12, fill=GREY, anchor="middle")
        for (left, width), topic in ((COMMANDS, "orders.commands"), (EVENTS, "orders.events")):
            middle, top = left + width / 2, self.lane_top(self.lanes()[0])
            shown = f", {len(self.lanes())} shown" if len(self.lanes()) < trace.partitions else ""
            count = f"{trace.partitions} partition{'s' if trace.partitions > 1 else ''}{shown}"
            self.text(middle, top - 21, topic, 13, anchor="middle", bold=True)
            self.text(middle, top - 6, count, 11, fill=GREY, anchor="middle")
            for lane in self.lanes():
                ours = lane == trace.partition
                style = f'fill="#e3f1fb" stroke="{BLUE}" stroke-width="2"'
                style = style if ours else f'fill="#f0f0f0" stroke="{LINE}"'
                self.rect(left, self.lane_top(lane), width, 50 if ours else 18, style)
                y = self.lane_top(lane) + (16 if ours else 13)
                self.text(left + 8, y, f"partition {lane}", 11, fill=INK if ours else GREY)
        for piece in (way[0], way[2], way[3]):
            points = " ".join(f"{x:g},{y:g}" for x, y in piece)
            self.parts.append(
                f'<polyline points="{points}" fill="none" stroke="{GREY}" stroke-dasharray="2 4"/>'
            )

    def message(self) -> None:
        """The message on its way, and what appears where it has been."""
        trace, way = self.trace, self.way()
        moments = [(0.0, way[0][0])]
        for piece, (start, end) in zip(way, pairwise(self.times), strict=False):
            steps = [math.dist(a, b) for a, b in pairwise(piece)]
            for i, point in enumerate(piece[1:], 1):
                share = sum(steps[:i]) / sum(steps)
                moments.append((start + (end - start) * share, point))
        if len(self.times) == 3:  # nobody has read the commit yet: it stays where it was written
            moments += [(1.03 * self.total, p) for p in way[2][1:2]]
            entry, exit_ = way[2][2], way[2][3]
            moments += [(1.06 * self.total, entry)]
            moments += [(1.1 * self.total, ((entry[0] + exit_[0]) / 2, entry[1]))]
        in_topic = moments[3][0], next((t for t, p in moments if p[0] > EVENTS[0] + 20), 0)
        for (left, _), offset, time in zip(
            (COMMANDS, EVENTS), (trace.command_offset, trace.event_offset), in_topic, strict=True
        ):
            y = self.lane_top(trace.partition) + 29
            at = self.appear(time)
            self.text(left + 8, y, f"offset {offset:,}", 11, fill=BLUE, bold=True, extra=at)
        middle, y = EVENTS[0] + EVENTS[1] / 2, 250
        for line, bold in ((f"commit: {trace.outcome}", True), (f"version {trace.version}", False)):
            at = self.appear(in_topic[1])
            self.text(middle, y, line, 12, anchor="middle", bold=bold, extra=at)
            y += 16
        self.view_document()
        x, y = moments[-1][1]
        frames = "".join(
            f"{self.percent(time):.3f}%{{transform:translate({px:.1f}px,{py:.1f}px)}}"
            for time, (px, py) in moments
        )
        frames += f"100%{{transform:translate({x:.1f}px,{y:.1f}px)}}"
        decided = self.percent(self.times[2])

        def turn(before: int, after: int) -> str:
            return self.animate(
                f"0%,{decided:.3f}%{{opacity:{before}}}{decided + 0.1:.3f}%,100%{{opacity:{after}}}"
            )

        self.parts.append(
            f'<g transform="translate({x:g} {y:g})"{self.animate(frames)}>'
            f'<g opacity="0"{turn(1, 0)}>{self.command_glyph()}</g>'
            f"<g{turn(0, 1)}>{self.commit_glyph()}</g></g>"
        )

    def view_document(self) -> None:
        """The view's document, before and after."""
        trace, (left, width) = self.trace, VIEW
        before = trace.version - len(trace.events)
        self.text(left + width / 2, 107, "MongoDB view", 13, anchor="middle", bold=True)
        self.text(left + width / 2, 122, "orders.view.orders", 11, fill=GREY, anchor="middle")
        self.text(left + 8, 145, _fit(f"_id: {trace.stream}", width - 14, 11), 11)
        was = f"was: version {before:,}" if before else "was: absent"
        self.text(left + 8, 160, was, 11, fill=GREY)
        if trace.events and "applied" not in trace.instants:
            now, at = "now: not yet seen", ""
        else:
            now = f"now: version {trace.version:,}" if trace.events else "now: unchanged"
            at = self.appear(self.times[-1])
        self.text(left + 8, 175, now, 11, bold=True, extra=at)

    def place(self, time: float) -> float:
        """Where ``time`` is on the axis."""
        return AXIS[0] + (AXIS[1] - AXIS[0]) * time / self.total

    def axis(self) -> None:
        """The stages on a time axis to scale, with the play head."""
        top, bottom = BAR
        self.text(24, 290, f"time since {self.names[0]} (ms), to scale", 12, bold=True)
        step = 10 ** math.floor(math.log10(self.total / 4))
        step *= next(k for k in (1, 2, 5, 10) if self.total / (step * k) <= 8)
        for tick in range(int(self.total / step) + 1):
            x = self.place(tick * step)
            self.parts.append(f'<path d="M{x:.1f} {top - 5}v5" stroke="{GREY}"/>')
            self.text(round(x, 1), top - 8, f"{tick * step / 1e6:,.10g}", 11, anchor="middle")
        for i, (start, end) in enumerate(pairwise(self.times)):
            left, right, colour = self.place(start), self.place(end), STAGES[self.names[i + 1]][1]
            self.parts.append(
                f'<rect x="{left:.2f}" y="{top}" width="{max(right - left, 1):.2f}" '
                f'height="{bottom - top}" fill="{colour}"/>'
                f'<path d="M{(left + right) / 2:.1f} {bottom}v4L{33 + 213 * i} {LEGEND - 7}" '
                f'fill="none" stroke="{GREY}"/>'
            )
            if right - left > 20:
                self.text(round((left + right) / 2, 1), top + 15, f"{i + 1}", 13, anchor="middle")
        run = self.percent(self.total)
        frames = (
            f"0%{{transform:translate({AXIS[0]}px,0)}}"
            f"{run:.3f}%,100%{{transform:translate({AXIS[1]}px,0)}}"
        )
        self.parts.append(
            f'<path transform="translate({AXIS[1]} 0)"{self.animate(frames)} '
            f'd="M0 {top - 1}l-5-6h10zV{bottom + 3}" fill="{INK}" stroke="{INK}" stroke-width="2"/>'
        )

    def legend(self) -> None:
        """A column for each stage: room for its numbers however short it was."""
        for i, (start, end) in enumerate(pairwise(self.times)):
            name, x = self.names[i + 1], 24 + 213 * i
            work, colour = STAGES[name]
            self.rect(x, LEGEND - 7, 18, 18, f'fill="{colour}"')
            self.text(x + 9, LEGEND + 7, f"{i + 1}", 12, anchor="middle", bold=True)
            self.text(x + 26, LEGEND + 7, f"{self.names[i]} → {name}", 13, bold=True)
            duration = f"{_ms(end - start)} ms"
            self.text(x, LEGEND + 31, duration, 16, bold=True)
            share = f"{100 * (end - start) / self.total:.0f} %"
            self.text(x + 8 + text_width(duration, 16, True), LEGEND + 31, share, 12, fill=GREY)
            self.text(x, LEGEND + 49, f"from {_ms(start)} to {_ms(end)} ms", 11, fill=GREY)
            self.text(x, LEGEND + 65, work, 11, fill=GREY)
