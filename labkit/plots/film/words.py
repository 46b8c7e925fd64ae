"""Text in the SVG of a film: its width, and what fits."""

from __future__ import annotations

import unicodedata


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper bound of the width of ``text``, in user units, in common sans-serif fonts."""
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


def clean(text: str) -> str:
    """Replace characters that XML forbids or that change the direction of the text."""
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)


def fit(text: str, width: float, size: float, bold: bool = False) -> str:
    """``text``, shortened to at most ``width`` user units."""
    text = clean(text)
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


def in_ms(nanoseconds: float) -> str:
    """Milliseconds with about three significant digits."""
    ms = nanoseconds / 1e6
    return f"{ms:,.{1 if ms >= 100 else 2 if ms >= 1 else 3}f}"
