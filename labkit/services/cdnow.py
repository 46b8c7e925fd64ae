"""The CDNOW purchases: every order of 23,570 customers of a CD shop, 1997-01 to 1998-06.

69,659 lines: customer, day, number of CDs, dollars. 255 lines are exact duplicates of others, so an
order's id comes from its line number. 80 orders cost nothing, which is valid. Amounts go through
``Decimal``: a float loses cents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from labkit.errors import StackError

ORDERS = 69_659


class Purchase(NamedTuple):
    """A line of the file; ``number`` counts from 1."""

    number: int
    customer: str
    day: str
    quantity: int
    cents: int


def file() -> Path:
    """The raw file, as the Lifetimes distribution ships it."""
    for found in metadata.files("Lifetimes") or []:
        if found.name == "CDNOW_master.txt":
            return Path(str(found.locate()))
    raise StackError("the Lifetimes distribution holds no CDNOW_master.txt; run `make install`")


def purchases(limit: int = ORDERS) -> list[Purchase]:
    """The first ``limit`` purchases, in the order of the file: by customer."""
    found = []
    with file().open(encoding="ascii") as lines:
        next(lines)
        for number, line in zip(range(1, limit + 1), lines, strict=False):
            customer, day, quantity, dollars = line.split()
            iso = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            cents = int(Decimal(dollars) * 100)
            found.append(Purchase(number, customer, iso, int(quantity), cents))
    return found


@functools.cache
def by_day() -> list[Purchase]:
    """All purchases in the order of their days."""
    return sorted(purchases(), key=lambda purchase: purchase.day)


def forever(lap: int | None = None) -> Iterator[tuple[int, Purchase]]:
    """The purchases by day, again and again after ``lap`` of them, each with its lap's number."""
    time = 0
    while True:
        for bought in by_day()[:lap]:
            yield time, bought
        time += 1
