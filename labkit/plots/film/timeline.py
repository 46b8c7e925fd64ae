"""The timeline of a film: the axis, the stages and the play head."""

from __future__ import annotations

import math
from itertools import pairwise

from labkit.plots.film.canvas import BOLD, GREY, INK, MIDDLE, MUTED, Canvas
from labkit.plots.film.words import in_ms, text_width
from labkit.plots.style import GREEN, ORANGE, PURPLE, SKY

#: What happens before each instant, and the colour of its bar.
STAGES = {
    "polled": ("waits in Kafka for the handler", SKY),
    "decided": ("state, duplicate check, decide", ORANGE),
    "fetched": ("Kafka transaction, projector poll", GREEN),
    "applied": ("MongoDB: view and checkpoint", PURPLE),
}
# The ends of the axis, the tops of the bars and of the columns, and the width of a column.
LEFT, RIGHT, BAR, LEGEND, COLUMN = 32, 868, 320, 376, 213


def draw_timeline(canvas: Canvas) -> None:
    head = _axis(canvas)
    _stages(canvas)
    canvas.parts.append(head)


def _place(canvas: Canvas, time: float) -> float:
    """The x coordinate of ``time``."""
    return LEFT + (RIGHT - LEFT) * time / canvas.total


def _axis(canvas: Canvas) -> str:
    """The axis in ms; returns the play head, which is drawn last."""
    canvas.text(24, 289, f"time since {canvas.names[0]} (ms), to scale", BOLD)
    step = 10 ** math.floor(math.log10(canvas.total / 4))
    step *= next(k for k in (1, 2, 5, 10) if canvas.total / (step * k) <= 8)
    for tick in range(int(canvas.total / step) + 1):
        x = _place(canvas, tick * step)
        canvas.parts.append(f'<path d="M{x:.1f} {BAR}v-5" stroke="{GREY}"/>')
        canvas.text(x, BAR - 11, f"{tick * step / 1e6:,.10g}", MIDDLE, 11)
    at = [f"transform:translate({x}px,0)" for x in (LEFT, RIGHT)]
    moves = canvas.animate((0, at[0]), (canvas.total, at[1]))
    return (
        f'<path transform="translate({RIGHT} 0)" d="M0 {BAR}l-5-8h10zv23" stroke-width="2" '
        f'stroke="{INK}"{moves}/>'
    )


def _stages(canvas: Canvas) -> None:
    """Each stage as a bar to scale, and as a column that has room for its numbers."""
    for i, (start, end) in enumerate(pairwise(canvas.times)):
        name, x, middle = canvas.names[i + 1], 24 + COLUMN * i, _place(canvas, (start + end) / 2)
        work, colour = STAGES[name]
        long = _place(canvas, end) - _place(canvas, start)
        canvas.parts.append(
            f'<rect x="{_place(canvas, start):.2f}" y="{BAR}" width="{max(long, 1):.2f}" '
            f'height="20" fill="{colour}"/><path d="M{middle:.1f} {BAR + 20}v4L{x + 9} '
            f'{LEGEND - 7}" fill="none" stroke="{GREY}"/>'
        )
        if long > 20:
            canvas.text(middle, BAR + 15, f"{i + 1}", MIDDLE, 13)
        canvas.rect(x, LEGEND - 7, 18, 18, f'fill="{colour}"')
        canvas.text(x + 9, LEGEND + 7, f"{i + 1}", BOLD + MIDDLE)
        canvas.text(x + 26, LEGEND + 7, f"{canvas.names[i]} → {name}", BOLD, 13)
        took, share = f"{in_ms(end - start)} ms", 100 * (end - start) / canvas.total
        canvas.text(x, LEGEND + 31, took, BOLD, 16)
        few = "under 1 %" if 0 < share < 1 else f"{share:.0f} %"
        canvas.text(x + 8 + text_width(took, 16, True), LEGEND + 31, few, MUTED)
        canvas.text(x, LEGEND + 49, f"from {in_ms(start)} to {in_ms(end)} ms", MUTED, 11)
        canvas.text(x, LEGEND + 65, work, MUTED, 11)
    if len(canvas.times) == 3:
        why = "it changes no view" * (not canvas.trace.events) or "no view shows it yet"
        note = f"The commit is in the log; {why}."
        canvas.text(24 + COLUMN * 2, LEGEND + 7, note, MUTED, 12)
