"""The film of one message: its real trace as an SVG that CSS alone sets in motion.

No script, font or other file: the picture also moves where it is shown as an image, which is how
JupyterLab shows it. What an element looks like without its animation is the end of the film, so a
reader who asked for reduced motion, and a printer, get that.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import msgspec

WIDTH, HEIGHT = 900, 456
RUN, HOLD = 7.0, 2.5  #: seconds: the trace is shown in about RUN, then its end stands still
INSTANTS = ("sent", "polled", "decided", "fetched", "applied")

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
VERMILLION, INK, GREY, PALE = "#D55E00", "#1b1b1b", "#555555", "#b5b5b5"
BOLD, MIDDLE, MUTED = ' font-weight="700"', ' text-anchor="middle"', f' fill="{GREY}"'

#: What happens between an instant and the one before it, and the colour of its bar.
STAGES = {
    "polled": ("waits in Kafka for the handler", SKY),
    "decided": ("state, duplicate check, decide", ORANGE),
    "fetched": ("Kafka transaction, way to reader", GREEN),
    "applied": ("MongoDB: view and checkpoint", PURPLE),
}
#: A commit's glyph bears the mark of its outcome, since a colour alone would say nothing.
MARKS = {
    "accepted": ("M-4 0l3 3 5-6", GREEN),
    "refused": ("M-3-3l6 6M3-3l-6 6", VERMILLION),
    "repeated": ("M-4-2h8M-4 2h8", PURPLE),
}
OTHER_MARK = ("M-2.5-3v6M2.5-3v6", GREY)
COMMAND = (
    f'<rect x="-9" y="-6.5" width="18" height="13" rx="2" fill="{BLUE}" stroke="#fff"/>'
    '<path d="M-7-4l7 5 7-5" fill="none" stroke="#fff" stroke-width="1.6"/>'
)
# Left edges of the stations; the top, the height and the dock of the boxes; the axis and its bar.
CLIENT, COMMANDS, HANDLER, EVENTS, PROJECTOR, VIEW = 24, 133, 316, 439, 622, 745
BOX, TOPIC, WIDE, GAP = 92, 152, 131, 31
TOP, TALL, DOCK = 130, 78, 193
LEFT, RIGHT, BAR, LEGEND, COLUMN = 32, 868, 320, 376, 213


class Trace(msgspec.Struct, frozen=True):
    """Where one command went, and when.

    ``instants`` are monotonic nanoseconds of one host, keyed ``sent, polled, decided, fetched,
    applied``; the last ones may be missing. ``version`` is the stream's, after the command.
    """

    service: str
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

    @classmethod
    def of(
        cls,
        service: str,
        document: dict[str, Any],
        sent: list[dict[str, Any]],
        made: list[dict[str, Any]],
        partitions: int,
    ) -> Trace:
        """The trace of the newest message in a stream's view document.

        ``sent`` and ``made`` are the rows of the commands and the events topic, as ``Lab.peek``
        gives them. A commit carries the place of its command; its id alone may stand in repeats.
        """
        at = document["trace"]
        place = (at["partition"], at["command"])
        (command,) = [r["value"] for r in sent if (r["partition"], r["offset"]) == place]
        (row,) = [r for r in made if (r["value"]["partition"], r["value"]["offset"]) == place]
        commit = row["value"]
        return cls(
            service=service,
            stream=document["_id"],
            command=command["body"]["type"],
            events=tuple(event["type"] for event in commit["events"]),
            outcome=commit["outcome"],
            partitions=partitions,
            partition=at["partition"],
            command_offset=at["command"],
            event_offset=row["offset"],
            version=document["version"],
            instants={stage: at[stage] for stage in INSTANTS},
        )


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
    return f"{ms:,.{1 if ms >= 100 else 2 if ms >= 1 else 3}f}"


class _Drawing:
    """Collects the elements, and the keyframes of those that move."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.names = [name for name in INSTANTS if name in trace.instants]
        self.times = [trace.instants[name] - trace.instants[self.names[0]] for name in self.names]
        if self.names != list(INSTANTS[: max(len(self.names), 3)]):
            raise ValueError(f"a film needs {', '.join(INSTANTS[:3])}, ..., got {self.names}")
        if self.times != sorted(self.times):
            raise ValueError(f"instants must not run backwards, got {trace.instants}")
        if not 0 <= trace.partition < trace.partitions:
            raise ValueError(f"there is no partition {trace.partition} of {trace.partitions}")
        self.total = max(self.times[-1], 1)
        # Two digits are what a reader remembers; the film then runs at exactly that speed.
        self.slower = float(f"{RUN * 1e9 / self.total:.2g}")
        self.loop = self.slower * self.total / 1e9 + HOLD
        # Two films on one page share its style sheet, so each has names of its own.
        self.ns = "film-" + hashlib.sha256(ascii(trace).encode()).hexdigest()[:12]
        first = max(0, min(trace.partition - 2, trace.partitions - 5))
        self.lanes = range(first, min(first + 5, trace.partitions))
        self.parts: list[str] = []
        self.css: list[str] = []

    def svg(self) -> str:
        """The whole document."""
        self.header()
        self.boxes()
        name = self.trace.service
        for left, topic in ((COMMANDS, f"{name}.commands"), (EVENTS, f"{name}.events")):
            self.topic(left, topic)
        self.view()
        self.message()
        self.axis()
        self.stages()
        trace, ns, id = self.trace, self.ns, _clean(self.trace.stream)[:200]
        title = escape(f"{_clean(trace.command)} {id}: {_clean(trace.outcome)}")
        style = (
            f"#{ns} text{{font-family:system-ui,'Segoe UI',Roboto,Arial,sans-serif}}"
            f"@media screen and (prefers-reduced-motion:no-preference){{{''.join(self.css)}}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" id="{ns}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" style="max-width:100%;height:auto" role="img" '
            f'fill="{INK}" aria-labelledby="{ns}-title {ns}-desc"><title id="{ns}-title">{title}'
            f'</title><desc id="{ns}-desc">{escape(self.description())}</desc><style>{style}'
            f'</style><rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" '
            f'fill="#fff" stroke="{PALE}"/>{"".join(self.parts)}</svg>\n'
        )

    def description(self) -> str:
        """The film in words."""
        trace, steps = self.trace, zip(pairwise(self.names), pairwise(self.times), strict=True)
        stages = "; ".join(f"{a} to {b} {_ms(end - start)} ms" for (a, b), (start, end) in steps)
        return (
            f"The command went to partition {trace.partition} of {trace.partitions}, offset "
            f"{trace.command_offset}. Its commit, {_clean(trace.outcome)}, version "
            f"{trace.version}, is in the same partition of the events topic, offset "
            f"{trace.event_offset}. {stages}. Between two instants it is drawn at even speed."
        )

    def text(self, x: float, y: float, text: str, style: str = "", size: int = 12) -> None:
        """A line of text; ``style`` is further attributes, each after a blank."""
        text = escape(_clean(text))
        self.parts.append(f'<text x="{x:.6g}" y="{y:g}" font-size="{size}"{style}>{text}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """A box with round corners."""
        size = f'width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" {size} rx="5" {style}/>')

    def percent(self, time: float) -> float:
        """The share of the loop at which ``time``, in ns since the first instant, is shown."""
        return 100 * (1 - HOLD / self.loop) * time / self.total

    def animate(self, *frames: tuple[float, str]) -> str:
        """The attribute of an element that goes through ``frames``: instants in ns, and CSS."""
        name = f"{self.ns}-{len(self.css)}"
        steps = "".join(f"{self.percent(time):.3f}%{{{css}}}" for time, css in frames)
        steps += f"100%{{{frames[-1][1]}}}"
        rule = f"#{name}{{animation:{name} {self.loop:.3f}s linear infinite}}"
        self.css.append(f"@keyframes {name}{{{steps}}}{rule}")
        return f' id="{name}"'

    def appear(self, time: float, before: int = 0) -> str:
        """The attribute of an element that appears at ``time``, or that goes then."""
        hidden, shown = f"opacity:{before}", f"opacity:{1 - before}"
        return self.animate((0, hidden), (time, hidden), (time + self.total / 500, shown))

    def header(self) -> None:
        """What this is, how it ended, and how fast it is shown."""
        trace, glyph = self.trace, '<g transform="translate({} 51)">{}</g>'
        speed, way = (self.slower, "slower") if self.slower >= 1 else (1 / self.slower, "faster")
        self.text(24, 34, _fit(f"{trace.command} {trace.stream}", 560, 17, True), BOLD, 17)
        end = f"{trace.outcome}: {', '.join(trace.events) or 'no event'}; "
        took = f"{_ms(self.total)} ms from {self.names[0]} to {self.names[-1]}"
        end = _fit(end, 620 - text_width(took, 13), 13)
        self.text(24, 55, f"{end.rstrip()} {took}", MUTED, 13)
        self.text(876, 34, f"shown {speed:,.10g} times {way}", BOLD + ' text-anchor="end"', 13)
        self.parts.append(glyph.format(694, COMMAND) + glyph.format(792, self.commit()))
        self.text(708, 55, "command", MUTED)
        self.text(806, 55, "its commit", MUTED)

    def commit(self) -> str:
        """The glyph of a commit."""
        mark, colour = MARKS.get(self.trace.outcome, OTHER_MARK)
        disc = f'<circle r="8" fill="{colour}" stroke="#fff"/>'
        return disc + f'<path d="{mark}" fill="none" stroke="#fff" stroke-width="2"/>'

    def boxes(self) -> None:
        """The stations that are no topics; an outline lights up when the message arrives."""
        there = dict(zip(self.names, self.times, strict=True))
        for left, width, instant, name, work in (
            (CLIENT, 78, "sent", "Client", "sends"),
            (HANDLER, BOX, "polled", "Handler", "decides"),
            (PROJECTOR, BOX, "fetched", "Projector", "applies"),
            (VIEW, WIDE, "applied", "", ""),
        ):
            self.rect(left, TOP, width, TALL, f'fill="#f6f6f6" stroke="{GREY}"')
            if instant in there and (instant != "applied" or self.trace.events):
                at = self.appear(there[instant])
                self.rect(
                    left, TOP, width, TALL, f'fill="none" stroke="{BLUE}" stroke-width="2"{at}'
                )
            self.text(left + width / 2, TOP + 22, name, BOLD + MIDDLE, 13)
            self.text(left + width / 2, TOP + 39, work, MUTED + MIDDLE)

    def lane(self, partition: int) -> float:
        """The upper edge of a partition; ours is taller, since the message passes through it."""
        top = TOP + TALL / 2 - 11 * len(self.lanes) - 15
        return top + 22 * (partition - self.lanes[0]) + 34 * (partition > self.trace.partition)

    def topic(self, left: int, name: str) -> None:
        """A topic as its partitions: at most five, ours among them."""
        trace, top, shown = self.trace, self.lane(self.lanes[0]), len(self.lanes)
        count = f"{trace.partitions} partition{'s' * (trace.partitions > 1)}"
        count += f", {shown} shown" * (shown < trace.partitions)
        self.text(left + TOPIC / 2, top - 21, name, BOLD + MIDDLE, 13)
        self.text(left + TOPIC / 2, top - 6, count, MUTED + MIDDLE, 11)
        for lane in self.lanes:
            y, text = self.lane(lane), f"partition {lane}"
            if lane == trace.partition:
                style = f'fill="#e3f1fb" stroke="{BLUE}" stroke-width="2"'
                self.rect(left, y, TOPIC, 52, f'class="{self.ns}-ours" {style}')
                self.text(left + 8, y + 16, text, BOLD, 11)
            else:
                self.rect(left, y, TOPIC, 18, f'fill="#f0f0f0" stroke="{PALE}"')
                self.text(left + 8, y + 13, text, MUTED, 11)

    def view(self) -> None:
        """The view's document, before and after."""
        trace, before = self.trace, self.trace.version - len(self.trace.events)
        now, time = "unchanged", self.times[-1]
        if trace.events:
            seen = "applied" in trace.instants
            now, time = (f"version {trace.version:,}", time) if seen else ("not yet", 0)
        self.text(VIEW + WIDE / 2, TOP - 21, "MongoDB view", BOLD + MIDDLE, 13)
        self.text(VIEW + WIDE / 2, TOP - 6, f"{self.trace.service}.view", MUTED + MIDDLE, 11)
        self.text(VIEW + 8, TOP + 17, _fit(f"_id: {trace.stream}", WIDE - 14, 11), "", 11)
        was = f"version {before:,}" if before > 0 else "absent"
        self.text(VIEW + 8, TOP + 32, f"was: {was}", MUTED, 11)
        self.text(VIEW + 8, TOP + 47, f"now: {now}", BOLD + self.appear(time), 11)

    def way(self) -> list[tuple[float, float, float]]:
        """Where the message is and when: (ns since the first instant, x, y)."""
        y = self.lane(self.trace.partition) + 41
        end = VIEW + WIDE / 2 if self.trace.events else PROJECTOR + 68
        pieces: list[list[tuple[float, float]]] = [[(CLIENT + 39, DOCK)]]
        for left, box in ((COMMANDS, HANDLER), (EVENTS, PROJECTOR)):
            lane = [(left - GAP, float(DOCK)), (left, y), (left + TOPIC / 2, y), (left + TOPIC, y)]
            pieces += [[*lane, (box, DOCK), (box + 22, DOCK)], [(box + 70, DOCK)]]
        pieces[-1] = [(end, DOCK)]
        times: list[tuple[float, float]] = list(pairwise(self.times))
        if len(times) == 2:  # nobody has read the commit yet: it stays where it was written
            pieces[3] = pieces[3][:3]
            times.append((self.times[2], self.times[2] + 0.1 * self.total))
        moments = [(0.0, *pieces[0][0])]
        for (start, stop), piece in zip(times, pieces[1:], strict=False):
            steps = [math.dist(a, b) for a, b in pairwise([moments[-1][1:], *piece])]
            for done, point in zip(accumulate(steps), piece, strict=True):
                moments.append((start + (stop - start) * done / sum(steps), *point))
        return moments

    def message(self) -> None:
        """The message on its way, its trail, and what stays where it has been."""
        trace, way = self.trace, self.way()
        for left, offset in ((COMMANDS, trace.command_offset), (EVENTS, trace.event_offset)):
            at = next(time for time, x, _ in way if x == left + TOPIC / 2)
            y, style = self.lane(trace.partition) + 30, f' fill="{BLUE}"{self.appear(at)}'
            self.text(left + 8, y, f"offset {offset:,}", BOLD + style, 11)
        outcome = _fit(f"commit: {trace.outcome}", TOPIC + GAP, 12, True)
        self.text(EVENTS + TOPIC / 2, 258, outcome, BOLD + MIDDLE + self.appear(at))
        version = f"version {trace.version:,}"
        self.text(EVENTS + TOPIC / 2, 274, version, MIDDLE + self.appear(at))
        for x in (COMMANDS, HANDLER, EVENTS, PROJECTOR, VIEW):
            y = self.lane(trace.partition) + 41 if x in (COMMANDS, EVENTS) else DOCK
            self.parts.append(f'<path d="M{x} {y}l-8-4v8z" fill="{PALE}"/>')
        done = list(accumulate((math.dist(a[1:], b[1:]) for a, b in pairwise(way)), initial=0))
        trail = [
            (time, f"stroke-dashoffset:{1 - way_so_far / done[-1]:.4f}")
            for (time, _, _), way_so_far in zip(way, done, strict=True)
        ]
        self.parts.append(
            f'<polyline points="{" ".join(f"{x:g},{y:g}" for _, x, y in way)}" pathLength="1" '
            f'stroke-dasharray="1" fill="none" stroke="{BLUE}" stroke-width="2" '
            f'stroke-opacity="0.6"{self.animate(*trail)}/>'
        )
        moves = [(time, f"transform:translate({x:.1f}px,{y:.1f}px)") for time, x, y in way]
        self.parts.append(
            f'<g transform="translate({way[-1][1]:g} {way[-1][2]:g})"{self.animate(*moves)}>'
            f'<g opacity="0"{self.appear(self.times[2], before=1)}>{COMMAND}</g>'
            f"<g{self.appear(self.times[2])}>{self.commit()}</g></g>"
        )

    def place(self, time: float) -> float:
        """Where ``time`` is on the axis."""
        return LEFT + (RIGHT - LEFT) * time / self.total

    def axis(self) -> None:
        """Milliseconds to scale, and the play head."""
        self.text(24, 289, f"time since {self.names[0]} (ms), to scale", BOLD)
        step = 10 ** math.floor(math.log10(self.total / 4))
        step *= next(k for k in (1, 2, 5, 10) if self.total / (step * k) <= 8)
        for tick in range(int(self.total / step) + 1):
            x = self.place(tick * step)
            self.parts.append(f'<path d="M{x:.1f} {BAR}v-5" stroke="{GREY}"/>')
            self.text(x, BAR - 11, f"{tick * step / 1e6:,.10g}", MIDDLE, 11)
        at = [f"transform:translate({x}px,0)" for x in (LEFT, RIGHT)]
        moves = self.animate((0, at[0]), (self.total, at[1]))
        self.head = (
            f'<path transform="translate({RIGHT} 0)" d="M0 {BAR}l-5-8h10zv23" stroke-width="2" '
            f'stroke="{INK}"{moves}/>'
        )

    def stages(self) -> None:
        """Each stage as its bar and as a column, which has room however short it was."""
        for i, (start, end) in enumerate(pairwise(self.times)):
            name, x, middle = self.names[i + 1], 24 + COLUMN * i, self.place((start + end) / 2)
            work, colour = STAGES[name]
            long = self.place(end) - self.place(start)
            self.parts.append(
                f'<rect x="{self.place(start):.2f}" y="{BAR}" width="{max(long, 1):.2f}" '
                f'height="20" fill="{colour}"/><path d="M{middle:.1f} {BAR + 20}v4L{x + 9} '
                f'{LEGEND - 7}" fill="none" stroke="{GREY}"/>'
            )
            if long > 20:
                self.text(middle, BAR + 15, f"{i + 1}", MIDDLE, 13)
            self.rect(x, LEGEND - 7, 18, 18, f'fill="{colour}"')
            self.text(x + 9, LEGEND + 7, f"{i + 1}", BOLD + MIDDLE)
            self.text(x + 26, LEGEND + 7, f"{self.names[i]} → {name}", BOLD, 13)
            took, share = f"{_ms(end - start)} ms", 100 * (end - start) / self.total
            self.text(x, LEGEND + 31, took, BOLD, 16)
            few = "under 1 %" if 0 < share < 1 else f"{share:.0f} %"
            self.text(x + 8 + text_width(took, 16, True), LEGEND + 31, few, MUTED)
            self.text(x, LEGEND + 49, f"from {_ms(start)} to {_ms(end)} ms", MUTED, 11)
            self.text(x, LEGEND + 65, work, MUTED, 11)
        if len(self.times) == 3:
            why = "it changes no view" * (not self.trace.events) or "no view shows it yet"
            note = f"The commit is in the log; {why}."
            self.text(24 + COLUMN * 2, LEGEND + 7, note, MUTED, 12)
        self.parts.append(self.head)
