"""What stands still in a film: the header, the boxes, the topics and the view."""

from __future__ import annotations

from labkit.plots.film.canvas import (
    BOLD,
    BOX,
    CLIENT,
    COMMANDS,
    EVENTS,
    GREY,
    HANDLER,
    MIDDLE,
    MUTED,
    PALE,
    PROJECTOR,
    TALL,
    TOP,
    TOPIC,
    VIEW,
    WIDE,
    Canvas,
)
from labkit.plots.film.glyphs import COMMAND, commit_glyph
from labkit.plots.film.words import fit, in_ms, text_width
from labkit.plots.style import BLUE


def draw_stations(canvas: Canvas) -> None:
    _header(canvas)
    _boxes(canvas)
    name = canvas.trace.service
    for left, topic in ((COMMANDS, f"{name}.commands"), (EVENTS, f"{name}.events")):
        _topic(canvas, left, topic)
    _view(canvas)


def _header(canvas: Canvas) -> None:
    """The command, its outcome, and the speed of the film."""
    trace, glyph = canvas.trace, '<g transform="translate({} 51)">{}</g>'
    speed, way = (canvas.slower, "slower") if canvas.slower >= 1 else (1 / canvas.slower, "faster")
    canvas.text(24, 34, fit(f"{trace.command} {trace.stream}", 560, 17, True), BOLD, 17)
    end = f"{trace.outcome}: {', '.join(trace.events) or 'no event'}; "
    took = f"{in_ms(canvas.total)} ms from {canvas.names[0]} to {canvas.names[-1]}"
    end = fit(end, 620 - text_width(took, 13), 13)
    canvas.text(24, 55, f"{end.rstrip()} {took}", MUTED, 13)
    canvas.text(876, 34, f"shown {speed:,.10g} times {way}", BOLD + ' text-anchor="end"', 13)
    canvas.parts.append(
        glyph.format(694, COMMAND) + glyph.format(792, commit_glyph(canvas.trace.outcome))
    )
    canvas.text(708, 55, "command", MUTED)
    canvas.text(806, 55, "its commit", MUTED)


def _boxes(canvas: Canvas) -> None:
    """The client, the workers and the view; an outline appears when the message arrives."""
    there = dict(zip(canvas.names, canvas.times, strict=True))
    for left, width, instant, name, work in (
        (CLIENT, 78, "sent", "Client", "sends"),
        (HANDLER, BOX, "polled", "Handler", "decides"),
        (PROJECTOR, BOX, "fetched", "Projector", "applies"),
        (VIEW, WIDE, "applied", "", ""),
    ):
        canvas.rect(left, TOP, width, TALL, f'fill="#f6f6f6" stroke="{GREY}"')
        if instant in there and (instant != "applied" or canvas.trace.events):
            at = canvas.appear(there[instant])
            canvas.rect(left, TOP, width, TALL, f'fill="none" stroke="{BLUE}" stroke-width="2"{at}')
        canvas.text(left + width / 2, TOP + 22, name, BOLD + MIDDLE, 13)
        canvas.text(left + width / 2, TOP + 39, work, MUTED + MIDDLE)


def _topic(canvas: Canvas, left: int, name: str) -> None:
    """A topic with at most five partitions, the trace's own among them."""
    trace, top, shown = canvas.trace, canvas.lane(canvas.lanes[0]), len(canvas.lanes)
    count = f"{trace.partitions} partition{'s' * (trace.partitions > 1)}"
    count += f", {shown} shown" * (shown < trace.partitions)
    canvas.text(left + TOPIC / 2, top - 21, name, BOLD + MIDDLE, 13)
    canvas.text(left + TOPIC / 2, top - 6, count, MUTED + MIDDLE, 11)
    for lane in canvas.lanes:
        y, text = canvas.lane(lane), f"partition {lane}"
        if lane == trace.partition:
            style = f'fill="#e3f1fb" stroke="{BLUE}" stroke-width="2"'
            canvas.rect(left, y, TOPIC, 52, f'class="{canvas.ns}-ours" {style}')
            canvas.text(left + 8, y + 16, text, BOLD, 11)
        else:
            canvas.rect(left, y, TOPIC, 18, f'fill="#f0f0f0" stroke="{PALE}"')
            canvas.text(left + 8, y + 13, text, MUTED, 11)


def _view(canvas: Canvas) -> None:
    """The document of the view, before and after."""
    trace, before = canvas.trace, canvas.trace.version - len(canvas.trace.events)
    now, time = "unchanged", canvas.times[-1]
    if trace.events:
        seen = "applied" in trace.instants
        now, time = (f"version {trace.version:,}", time) if seen else ("not yet", 0)
    canvas.text(VIEW + WIDE / 2, TOP - 21, "MongoDB view", BOLD + MIDDLE, 13)
    canvas.text(VIEW + WIDE / 2, TOP - 6, f"{canvas.trace.service}.view", MUTED + MIDDLE, 11)
    canvas.text(VIEW + 8, TOP + 17, fit(f"_id: {trace.stream}", WIDE - 14, 11), "", 11)
    was = f"version {before:,}" if before > 0 else "absent"
    canvas.text(VIEW + 8, TOP + 32, f"was: {was}", MUTED, 11)
    canvas.text(VIEW + 8, TOP + 47, f"now: {now}", BOLD + canvas.appear(time), 11)
