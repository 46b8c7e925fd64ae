"""Pages: a part of a long answer, and where the next one begins.

A cursor holds the sort fields of the last row, not a count of rows: what is inserted or removed
meanwhile neither shows a row twice nor leaves one out, and a late page costs what the first did.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import UsageError
from labkit.messages import Document
from labkit.read.generations import Serving
from labkit.service import MAX_PAGE, Page

Sorting = list[tuple[str, int]]


class _Cursor(Struct, frozen=True, array_like=True):
    """The values of the last row, and a sum over them and what they are a place in."""

    after: list[str | int | float | bool | None]
    sum: int


def page(
    views: Serving,
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
    of = msgspec.json.encode([collection, where, sort, at_most])
    after = _decode(cursor, of) if cursor else []
    rows = views.find(collection, where, sort, limit + 1, at_most, after=after)
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, _encode([rows[-1][field] for field, _ in sort], of) if more else "")


def _encode(after: list[Any], of: bytes) -> str:
    raw = msgspec.json.encode(_Cursor(after, _sum(after, of)), enc_hook=int)  # BSON has a large int
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str, of: bytes) -> list[Any]:
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True)
        found = msgspec.json.decode(raw, type=_Cursor)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError) as error:
        raise UsageError(f"cursor {cursor[:60]!r} is none that a page gave: {error}") from None
    if found.sum != _sum(found.after, of):
        raise UsageError(f"cursor {cursor[:60]!r} is of another query; begin without one")
    return found.after


def _sum(after: list[Any], of: bytes) -> int:
    """Tells a cursor of another query, and one that was made by hand."""
    return zlib.crc32(of + msgspec.json.encode(after, enc_hook=int))
