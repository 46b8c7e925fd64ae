"""The film itself: a complete SVG document."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from labkit.plots.film.canvas import HEIGHT, INK, PALE, WIDTH, Canvas
from labkit.plots.film.message import draw_message
from labkit.plots.film.stations import draw_stations
from labkit.plots.film.timeline import draw_timeline
from labkit.plots.film.trace import Trace
from labkit.plots.film.words import clean, in_ms


class Film:
    """The animated SVG of a trace; a notebook displays it as the last value of a cell.

    Raises :class:`ValueError` for a trace whose instants are missing or run backwards.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.svg = _svg(Canvas(trace))

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the SVG file and return its path."""
        path = Path(path)
        path.write_text(self.svg, encoding="utf-8")
        return path


def _svg(canvas: Canvas) -> str:
    draw_stations(canvas)
    draw_message(canvas)
    draw_timeline(canvas)
    trace, ns, id = canvas.trace, canvas.ns, clean(canvas.trace.stream)[:200]
    title = escape(f"{clean(trace.command)} {id}: {clean(trace.outcome)}")
    style = (
        f"#{ns} text{{font-family:system-ui,'Segoe UI',Roboto,Arial,sans-serif}}"
        f"@media screen and (prefers-reduced-motion:no-preference){{{''.join(canvas.css)}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{ns}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        # As wide as its place: JupyterLab and nbconvert show it as an image in a cell of any width.
        f'width="100%" role="img" '
        f'fill="{INK}" aria-labelledby="{ns}-title {ns}-desc"><title id="{ns}-title">{title}'
        f'</title><desc id="{ns}-desc">{escape(_description(canvas))}</desc><style>{style}'
        f'</style><rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" '
        f'fill="#fff" stroke="{PALE}"/>{"".join(canvas.parts)}</svg>\n'
    )


def _description(canvas: Canvas) -> str:
    """The content of the film in words, for screen readers."""
    trace, steps = canvas.trace, zip(pairwise(canvas.names), pairwise(canvas.times), strict=True)
    stages = "; ".join(f"{a} to {b} {in_ms(end - start)} ms" for (a, b), (start, end) in steps)
    return (
        f"The command went to partition {trace.partition} of {trace.partitions}, offset "
        f"{trace.command_offset}. Its commit, {clean(trace.outcome)}, version "
        f"{trace.version}, is in the same partition of the events topic, offset "
        f"{trace.event_offset}. {stages}. Between two instants it is drawn at even speed."
    )
