"""Pages: a part of a long answer, and where the next one begins.

A cursor holds the sort fields of the last row, not a count of rows: what is inserted or removed
meanwhile neither shows a row twice nor leaves one out, and a late page costs what the first did.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Struct

from labkit.errors import UsageError
from labkit.messages import Count
from labkit.ports.store import Document
from labkit.read.generations import Views

#: Rows of one page at most.
MAX_PAGE = 1_000
#: Fields that hold numbers; all others that anything is sorted by hold text.
NUMBERS = frozenset({"cents", "on_hand", "version"})

Sorting = list[tuple[str, int]]


class Page(Struct, frozen=True):
    """``cursor`` is where the next page begins; empty: this was the last."""

    rows: list[Document]
    cursor: str = ""


class _Cursor(Struct, frozen=True, array_like=True):
    """The sorting that it belongs to, and the values of the last row."""

    sort: list[tuple[str, int]]
    after: list[Annotated[str, msgspec.Meta(max_length=1_000)] | Count]


def page(
    views: Views,
    collection: str,
    where: Document,
    sort: Sorting,
    limit: int,
    cursor: str,
    at_most: Mapping[str, int] | None = None,
) -> Page:
    """At most ``limit`` documents after ``cursor``; raises ``UsageError`` for a bad one."""
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"limit must be from 1 to {MAX_PAGE}, got {limit}")
    after = _decode(cursor, sort) if cursor else []
    rows = views.find(collection, where, sort, limit + 1, at_most, after=after)
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, _encode(sort, rows[-1]) if more else "")


def _encode(sort: Sorting, row: Document) -> str:
    after = [row[field] for field, _ in sort]
    raw = msgspec.json.encode(_Cursor(sort, after), enc_hook=int)  # MongoDB has a large int, too
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str, sort: Sorting) -> list[str | int]:
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True)
        found = msgspec.json.decode(raw, type=_Cursor)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError) as error:
        raise UsageError(f"cursor {cursor[:60]!r} is none that a page gave: {error}") from None
    kinds = [int if field in NUMBERS else str for field, _ in sort]
    if found.sort != sort or [type(value) for value in found.after] != kinds:
        raise UsageError(f"cursor {cursor[:60]!r} is of another query; begin without one")
    return found.after
