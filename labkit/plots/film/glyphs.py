"""The glyphs of a command and of its commit."""

from __future__ import annotations

from labkit.plots.film.canvas import GREY
from labkit.plots.style import BLUE, GREEN, PURPLE, VERMILLION

#: The mark of each outcome on the glyph of a commit: readers need more than a colour.
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


def commit_glyph(outcome: str) -> str:
    mark, colour = MARKS.get(outcome, OTHER_MARK)
    disc = f'<circle r="8" fill="{colour}" stroke="#fff"/>'
    return disc + f'<path d="{mark}" fill="none" stroke="#fff" stroke-width="2"/>'
