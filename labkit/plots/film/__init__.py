"""The film of one command: its real trace as an SVG that CSS alone animates.

It needs no script, font or other file, so it also moves where it is shown as an image, as in
JupyterLab. Without the animation it shows the end of the film: readers who prefer reduced motion
and printers get that picture.
"""

from labkit.plots.film.canvas import HEIGHT, WIDTH
from labkit.plots.film.film import Film
from labkit.plots.film.trace import Trace
from labkit.plots.film.words import text_width

__all__ = ["HEIGHT", "WIDTH", "Film", "Trace", "text_width"]
