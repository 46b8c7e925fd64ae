"""The rule of three: what it says that something was not seen in a number of tries.

If none of ``n`` independent tries showed it, its share is at most 3 / n, with a confidence of 95 %:
(1 - 3/n)^n is about 5 % (Hanley and Lippman-Hand, "If Nothing Goes Wrong, Is Everything All
Right?", JAMA 249, 1983).
"""

from __future__ import annotations


def at_most(count: int, tries: int) -> float | None:
    """The share that zero cases leave possible; ``None`` if there were cases, or no tries."""
    return min(1.0, 3 / tries) if tries and not count else None


def counted(count: int, tries: int) -> str:
    """ "3 of 40"; of zero cases with the bound: "0 of 40 (at most 7.5 %)"."""
    most = at_most(count, tries)
    bound = "" if most is None else f" (at most {float(f'{100 * most:.2g}'):g} %)"
    return f"{count:,} of {tries:,}{bound}"
