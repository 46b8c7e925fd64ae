"""The message of a film on its path through the stations."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

from labkit.plots.film.canvas import (
    BOLD,
    CLIENT,
    COMMANDS,
    DOCK,
    EVENTS,
    GAP,
    HANDLER,
    MIDDLE,
    PALE,
    PROJECTOR,
    TOPIC,
    VIEW,
    WIDE,
    Canvas,
)
from labkit.plots.film.glyphs import COMMAND, commit_glyph
from labkit.plots.film.words import fit
from labkit.plots.style import BLUE


def draw_message(canvas: Canvas) -> None:
    """The moving message, its trail, and the offsets that it leaves."""
    trace, way = canvas.trace, _path(canvas)
    for left, offset in ((COMMANDS, trace.command_offset), (EVENTS, trace.event_offset)):
        at = next(time for time, x, _ in way if x == left + TOPIC / 2)
        y, style = canvas.lane(trace.partition) + 30, f' fill="{BLUE}"{canvas.appear(at)}'
        canvas.text(left + 8, y, f"offset {offset:,}", BOLD + style, 11)
    outcome = fit(f"commit: {trace.outcome}", TOPIC + GAP, 12, True)
    canvas.text(EVENTS + TOPIC / 2, 258, outcome, BOLD + MIDDLE + canvas.appear(at))
    version = f"version {trace.version:,}"
    canvas.text(EVENTS + TOPIC / 2, 274, version, MIDDLE + canvas.appear(at))
    for x in (COMMANDS, HANDLER, EVENTS, PROJECTOR, VIEW):
        y = canvas.lane(trace.partition) + 41 if x in (COMMANDS, EVENTS) else DOCK
        canvas.parts.append(f'<path d="M{x} {y}l-8-4v8z" fill="{PALE}"/>')
    done = list(accumulate((math.dist(a[1:], b[1:]) for a, b in pairwise(way)), initial=0))
    trail = [
        (time, f"stroke-dashoffset:{1 - way_so_far / done[-1]:.4f}")
        for (time, _, _), way_so_far in zip(way, done, strict=True)
    ]
    canvas.parts.append(
        f'<polyline points="{" ".join(f"{x:g},{y:g}" for _, x, y in way)}" pathLength="1" '
        f'stroke-dasharray="1" fill="none" stroke="{BLUE}" stroke-width="2" '
        f'stroke-opacity="0.6"{canvas.animate(*trail)}/>'
    )
    moves = [(time, f"transform:translate({x:.1f}px,{y:.1f}px)") for time, x, y in way]
    canvas.parts.append(
        f'<g transform="translate({way[-1][1]:g} {way[-1][2]:g})"{canvas.animate(*moves)}>'
        f'<g opacity="0"{canvas.appear(canvas.times[2], before=1)}>{COMMAND}</g>'
        f"<g{canvas.appear(canvas.times[2])}>{commit_glyph(canvas.trace.outcome)}</g></g>"
    )


def _path(canvas: Canvas) -> list[tuple[float, float, float]]:
    """The moments of the message: (ns since the first instant, x, y)."""
    y = canvas.lane(canvas.trace.partition) + 41
    end = VIEW + WIDE / 2 if canvas.trace.events else PROJECTOR + 68
    pieces: list[list[tuple[float, float]]] = [[(CLIENT + 39, DOCK)]]
    for left, box in ((COMMANDS, HANDLER), (EVENTS, PROJECTOR)):
        lane = [(left - GAP, float(DOCK)), (left, y), (left + TOPIC / 2, y), (left + TOPIC, y)]
        pieces += [[*lane, (box, DOCK), (box + 22, DOCK)], [(box + 70, DOCK)]]
    pieces[-1] = [(end, DOCK)]
    times: list[tuple[float, float]] = list(pairwise(canvas.times))
    if len(times) == 2:  # no projector has read the commit: it stays in the events topic
        pieces[3] = pieces[3][:3]
        times.append((canvas.times[2], canvas.times[2] + 0.1 * canvas.total))
    moments = [(0.0, *pieces[0][0])]
    for (start, stop), piece in zip(times, pieces[1:], strict=False):
        steps = [math.dist(a, b) for a, b in pairwise([moments[-1][1:], *piece])]
        for done, point in zip(accumulate(steps), piece, strict=True):
            moments.append((start + (stop - start) * done / sum(steps), *point))
    return moments
